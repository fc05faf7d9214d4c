// selftest_test FOLDER: what an engine of Python's build (FOLDER from model.py) is asked on arrival.
#include "selftest.h"

#include <filesystem>

#include "check.h"
#include "files.h"
#include "machine.h"

using namespace rest_deploy;

namespace {

constexpr const char* kCpuInfo =
    "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\n"
    "model name\t: Xeon\nstepping\t: 7\nflags\t\t: fpu fma avx2 avx512f avx512_vnni\n\n"
    "processor\t: 1\nmodel name\t: other\n";

void machines() {
  const Cpu cpu = cpu_of(kCpuInfo);
  CHECK(cpu.name == "Xeon (6/85/7)");
  CHECK((cpu.features == std::vector<std::string>{"avx2", "fma", "avx512f", "avx512_vnni"}));
  CHECK(instruction_set(cpu.features) == "AVX-512 with VNNI");
  const auto left = held(cpu.features, "ONEDNN_MAX_CPU_ISA=avx512_core");
  CHECK((left == std::vector<std::string>{"avx2", "fma", "avx512f"}));
  CHECK(!adds_bytes_exactly(left) && adds_bytes_exactly(cpu.features));
  CHECK(held(cpu.features, "ONEDNN_MAX_CPU_ISA=ALL") == cpu.features);
  CHECK(held(cpu.features, "") == cpu.features);
  CHECK(cpu_of("Features : asimd asimddp\n").features == std::vector<std::string>{"asimddp"});
  CHECK(instruction_set({"asimddp"}) == "Arm with dot products");
}

void base64() {
  const auto decoded = [](std::string_view text) {
    std::string bytes;
    return from_base64(text, bytes) ? bytes : "refused";
  };
  CHECK(decoded("") == "" && decoded("YQ==") == "a" && decoded("YWI=") == "ab");
  CHECK(decoded("YWJj") == "abc" && decoded("YWJjZA==") == "abcd");
  CHECK(decoded("YWJ") == "refused" && decoded("YW!j") == "refused" && decoded("Y===") == "refused");
}

class Counting final : public Runner {
 public:
  explicit Counting(const Runner& runner) : runner_(runner) {}
  const std::string& name() const noexcept override { return runner_.name(); }
  const Metadata& metadata() const noexcept override { return runner_.metadata(); }
  Result<Tensors> infer_all(const ImageBatch& images,
                            const std::vector<std::string>& names) const override {
    ++calls;
    return runner_.infer_all(images, names);
  }
  mutable int calls = 0;

 private:
  const Runner& runner_;
};

// A copy of the engine that was never opened.
std::string copied(const std::string& engine, const std::string& name) {
  const std::filesystem::path folder = std::filesystem::path(engine).parent_path() / name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const std::string copy = (folder / std::filesystem::path(engine).filename()).string();
  std::filesystem::copy_file(engine, copy);
  std::filesystem::copy_file(engine + ".json", copy + ".json");
  return copy;
}

void a_pass_of_python_counts(const std::string& engine, const Site& here) {
  const Result<Sidecar> sidecar = read_sidecar(engine);
  if (!CHECK_THAT(sidecar.ok(), sidecar.status().text())) return;
  const std::string key = selftest_key(sidecar.value(), here);
  CHECK(key.size() == 64);
  const std::string memory = selftest_memory(engine, key);
  CHECK_THAT(read_all(memory).find(key) != std::string::npos, "Python has another key");
}

void asked_once(const std::string& engine, const Runner& runner, const Site& here) {
  const std::string copy = copied(engine, "once");
  const Sidecar sidecar = read_sidecar(copy).value();
  CHECK(sidecar.gated && sidecar.selftest && sidecar.site && sidecar.selftest->probes.size() == 2);
  const Counting counting(runner);
  CHECK(check_arrival(copy, sidecar, counting, here).ok() && counting.calls == 2);
  CHECK(check_arrival(copy, sidecar, counting, here).ok() && counting.calls == 2);
  for (std::string Site::* field : {&Site::cpu, &Site::backend, &Site::version, &Site::threads}) {
    Site other = here;
    other.*field += "2";
    const int before = counting.calls;
    CHECK(check_arrival(copy, sidecar, counting, other).ok() && counting.calls == before + 2);
  }
  write_all(selftest_memory(copy, selftest_key(sidecar, here)), "{");  // no pass
  const int before = counting.calls;
  CHECK(check_arrival(copy, sidecar, counting, here).ok() && counting.calls == before + 2);
  Sidecar older = sidecar;
  older.selftest.reset();
  CHECK(check_arrival(copy, older, counting, here).ok() && counting.calls == before + 2);
}

void refused(const std::string& engine, const Runner& runner, const Site& here) {
  const std::string copy = copied(engine, "refused");
  Sidecar sidecar = read_sidecar(copy).value();
  Expected& logits = sidecar.selftest->expected.front();
  const auto message = [&](const std::string& name) {
    sidecar.text_sha256 = name;  // another key
    const Status status = check_arrival(copy, sidecar, runner, here);
    CHECK_THAT(status.ok() || status.code() == Code::selftest, status.text());
    return status.message();
  };
  const auto says = [](const std::string& text, const std::string& part) {
    return CHECK_THAT(text.find(part) != std::string::npos, text);
  };
  logits.values[3] += 0.01F;
  says(message("damaged"), "as here: it is damaged: logits against PyTorch float64: error ");
  says(message("again"), "bound 1e-05");  // a failure is not remembered
  sidecar.precision = "int8";
  sidecar.site->features = {"avx2", "fma", "avx512f", "avx512_vnni"};
  says(message("from VNNI"), "built on AVX-512 with VNNI; this CPU has " +
                                 instruction_set(here.features));
  sidecar.site = here;
  sidecar.site->version = "2025.1";
  says(message("from another version"), "built with openvino 2025.1; here is openvino ");
  sidecar.site = here;
  sidecar.gated = false;
  logits.built = 0.1;  // its builder knows it
  sidecar.site->threads = "any";
  CHECK(message("at home").empty());
  sidecar.site->cpu = "another";
  says(message("elsewhere"), "built without the accuracy gate; this is ");
  logits.values.pop_back();
  says(message("too few"), "error inf");
  sidecar.selftest->probes.front()[0] = '!';
  sidecar.text_sha256 = "no probe";
  CHECK(check_arrival(copy, sidecar, runner, here).code() == Code::artifact);
}

void opened(const std::string& engine) {
  const std::string copy = copied(engine, "opened");
  CHECK(open_runner(copy).ok());
  const std::string text = read_all(copy + ".json");
  write_all(copy + ".json", replaced(text, "\"bound\": 0.00001,\n          \"built\"",
                                     "\"bound\": 1e-12,\n          \"built\""));
  const auto runner = open_runner(copy);
  CHECK(runner.status().code() == Code::selftest && exit_code(runner.status().code()) == 1);
  CHECK(runner.status().hint().find("--no-selftest") != std::string::npos);
  RunnerOptions options;
  options.selftest = false;
  CHECK(open_runner(copy, options).ok());
  write_all(copy + ".json", replaced(text, "\"values\": \"", "\"values\": \"!"));
  CHECK(open_runner(copy).status().code() == Code::artifact);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string engine = std::string(argv[1]) + "/engine/rest_nano.fp32.openvino.onnx";
  machines();
  base64();
  const Result<Sidecar> sidecar = read_sidecar(engine);
  const auto runner = open_runner(engine);
  if (!CHECK_THAT(sidecar.ok() && runner.ok(), runner.status().text())) return check::result();
  const Site here = site_here("openvino/cpu", sidecar.value().site->version, 0);
  a_pass_of_python_counts(engine, here);
  asked_once(engine, *runner.value(), here);
  refused(engine, *runner.value(), here);
  opened(engine);
  return check::result();
}
