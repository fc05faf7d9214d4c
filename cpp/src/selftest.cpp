#include "selftest.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "decode.h"
#include "machine.h"
#include "sha256.h"

namespace rest_deploy {
namespace {

// How much worse than where it was built an engine may be that passed no gate, on that machine.
constexpr double kRoom = 1.25;

struct Check {
  std::string name;
  double error = 0;
  double bound = 0;
};

std::string joined(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

std::string words(const Site& site) {
  if (!site.gpu.empty()) return "a GPU of compute capability " + site.gpu;
  return instruction_set(site.features);
}

std::string runtime(const Site& site) {
  return site.backend.substr(0, site.backend.find('/')) + " " + site.version;
}

// "0.067"
std::string figure(double value) {
  std::ostringstream text;
  text.precision(2);
  text << value;
  return text.str();
}

// Where it was built, with any number of threads.
bool at_home(const std::optional<Site>& built, const Site& here) {
  return built && built->cpu == here.cpu && built->features == here.features &&
         built->backend == here.backend && built->version == here.version &&
         built->gpu == here.gpu && built->driver == here.driver;
}

bool told(const std::string& memory, const std::string& key) {
  std::ifstream file(memory, std::ios::binary);
  if (!file) return false;
  const nlohmann::json found = nlohmann::json::parse(file, nullptr, false);
  return found.is_object() && found.value("key", nlohmann::json()) == key;
}

void keep(const std::string& memory, const std::string& key, const Site& here) {
  const nlohmann::ordered_json found{
      {"key", key},
      {"site",
       {{"cpu", here.cpu},
        {"features", here.features},
        {"backend", here.backend},
        {"version", here.version},
        {"threads", here.threads},
        {"gpu", here.gpu},
        {"driver", here.driver}}},
      {"answers", nlohmann::ordered_json::object()},
  };
  const std::filesystem::path target(memory);
  std::error_code refused;
  std::filesystem::create_directories(target.parent_path(), refused);
  const std::string staged = memory + "." + std::to_string(getpid());
  std::ofstream file(staged, std::ios::binary | std::ios::trunc);
  file << found.dump(2) << "\n";
  file.close();
  if (file) std::filesystem::rename(staged, target, refused);
  if (!file || refused) std::filesystem::remove(staged, refused);
}

// The probes' pixels; nothing where one is damaged.
std::optional<std::vector<Image>> pixels_of(const SelfTest& test) {
  std::vector<Image> images;
  for (const std::string& probe : test.probes) {
    std::string bytes;
    if (!from_base64(probe, bytes)) return std::nullopt;
    Result<Image> image =
        decode_image(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    if (!image) return std::nullopt;
    images.push_back(std::move(image.value()));
  }
  return images;
}

// One image, as often as a profile asks for.
Images batch_of(const Image& pixels, const Metadata& metadata, std::size_t count) {
  Images images{{}, count, static_cast<std::size_t>(pixels.height),
                static_cast<std::size_t>(pixels.width), {}};
  const std::size_t each = pixels.rgb.size();
  if (metadata.input == InputKind::pixels) {
    for (std::size_t i = 0; i < count; ++i) {
      images.pixels.insert(images.pixels.end(), pixels.rgb.begin(), pixels.rgb.end());
    }
    return images;
  }
  images.data.resize(count * each);
  for (std::size_t i = 0; i < count; ++i) {
    normalize(pixels, metadata.preprocessing, images.data.data() + i * each);
  }
  return images;
}

// Of the first image: a vector as it is, of a map the mean of each channel.
void digest(const Output& output, const Tensor& tensor, std::vector<float>& to) {
  const std::size_t cells = tensor.each() / output.channels;
  for (std::size_t c = 0; c < output.channels; ++c) {
    const float* from = tensor.values.data() + c * cells;
    double sum = 0;
    for (std::size_t i = 0; i < cells; ++i) sum += from[i];
    to.push_back(output.stride == 0 ? *from : static_cast<float>(sum / double(cells)));
  }
}

// ||actual - expected|| / ||expected||; infinite for NaN.
double error_of(const std::vector<float>& expected, const std::vector<float>& actual) {
  double difference = 0, size = 0;
  if (expected.size() != actual.size()) return std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(actual[i])) return std::numeric_limits<double>::infinity();
    difference += (double{actual[i]} - expected[i]) * (double{actual[i]} - expected[i]);
    size += double{expected[i]} * expected[i];
  }
  return std::sqrt(difference) / std::sqrt(size);
}

std::string cause(const Sidecar& sidecar, const Site& here) {
  const std::optional<Site>& built = sidecar.site;
  if (!built) return "this is " + words(here) + ", " + runtime(here);
  const std::string gate = sidecar.gated ? "" : " without the accuracy gate";
  if (built->features != here.features || built->gpu != here.gpu) {
    std::string reason;
    if (sidecar.precision == "int8" && here.gpu.empty() && adds_bytes_exactly(built->features) &&
        !adds_bytes_exactly(here.features)) {
      reason = ", where 8-bit sums saturate";
    }
    if (const std::string level = cap(); !level.empty() && here.gpu.empty()) {
      reason += " (" + level + ")";
    }
    return "built on " + words(*built) + gate + "; this " + (here.gpu.empty() ? "CPU has " : "is ") +
           words(here) + reason;
  }
  if (built->backend != here.backend || built->version != here.version) {
    return "built with " + runtime(*built) + gate + "; here is " + runtime(here);
  }
  if (!gate.empty()) return "built" + gate + "; this is " + words(here);
  return "built on " + words(*built) + " with " + runtime(*built) + ", as here: it is damaged";
}

}  // namespace

Site site_here(const std::string& backend, const std::string& version, int threads,
               const std::string& gpu, const std::string& driver) {
  const Cpu cpu = cpu_here();
  const bool openvino = backend.rfind("openvino/", 0) == 0;
  return {cpu.name,
          openvino ? held(cpu.features, cap()) : cpu.features,
          backend,
          version,
          (threads > 0 ? threads : cores()) == 1 ? "one" : "several",
          gpu,
          driver};
}

std::string selftest_key(const Sidecar& sidecar, const Site& here) {
  const std::string nothing;  // no compiled form on disk
  return sha256(joined({sidecar.text_sha256, here.backend, here.version, here.cpu}, "\n") + "\n" +
                joined(here.features, " ") + "\n" + here.gpu + "\n" + here.driver + "\n" +
                here.threads + "\n" + nothing);
}

std::string selftest_memory(const std::string& path, const std::string& key) {
  return path + ".cache/selftest-" + key.substr(0, 16) + ".json";
}

bool from_base64(std::string_view text, std::string& bytes) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.size() % 4 != 0) return false;
  std::size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  std::uint32_t word = 0;
  for (std::size_t i = 0; i < text.size() - padding; ++i) {
    const std::size_t digit = digits.find(text[i]);
    if (digit == std::string_view::npos) return false;
    word = word << 6 | static_cast<std::uint32_t>(digit);
    if (i % 4 == 3) {
      for (const int shift : {16, 8, 0}) bytes += static_cast<char>(word >> shift & 0xff);
      word = 0;
    }
  }
  if (padding == 1) bytes += {static_cast<char>(word >> 10 & 0xff), static_cast<char>(word >> 2 & 0xff)};
  if (padding == 2) bytes += static_cast<char>(word >> 4 & 0xff);
  return true;
}

Status check_arrival(const std::string& path, const Sidecar& sidecar, const Runner& runner,
                     const Site& here) {
  if (!sidecar.selftest) return {};
  const SelfTest& test = *sidecar.selftest;
  const std::string key = selftest_key(sidecar, here), memory = selftest_memory(path, key);
  if (told(memory, key)) return {};
  const std::string hint = "build it on this machine: " + sidecar.command +
                           "; --no-selftest, RunnerOptions::selftest = false, loads it all the same";
  const std::optional<std::vector<Image>> probes = pixels_of(test);
  if (!probes) {
    return {Code::artifact, "the self-test in the sidecar of " + path + " is damaged", hint};
  }
  const Metadata& metadata = runner.metadata();
  std::vector<std::vector<float>> answers(test.expected.size());
  for (const Image& pixels : *probes) {
    const Images images = batch_of(pixels, metadata, test.batch);
    const Result<Tensors> tensors = runner.infer_all(images.view(), {});
    if (!tensors) return tensors.status();
    for (std::size_t i = 0; i < test.expected.size(); ++i) {
      for (const Tensor& tensor : tensors.value()) {
        if (tensor.name == test.expected[i].name) {
          digest(*metadata.find(tensor.name), tensor, answers[i]);
        }
      }
    }
  }
  const bool lenient = !sidecar.gated && at_home(sidecar.site, here);
  std::optional<Check> worst;
  for (std::size_t i = 0; i < test.expected.size(); ++i) {
    const Expected& one = test.expected[i];
    // Who built an engine without the gate knows it, and may load it there.
    const double bound = lenient && one.built ? std::max(one.bound, kRoom * *one.built) : one.bound;
    const double error = error_of(one.values, answers[i]);
    if (error <= bound) continue;
    if (!worst || error / bound > worst->error / worst->bound) worst = Check{one.name, error, bound};
  }
  if (worst) {
    return {Code::selftest,
            path + " does not answer here as it must: " + cause(sidecar, here) + ": " + worst->name +
                " against " + test.reference + ": error " + figure(worst->error) + ", bound " +
                figure(worst->bound),
            hint};
  }
  keep(memory, key, here);
  return {};
}

}  // namespace rest_deploy
