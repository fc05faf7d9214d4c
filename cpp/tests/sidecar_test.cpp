// sidecar_test FOLDER: what is read of a sidecar, and every way one is refused.
#include "sidecar.h"

#include "check.h"
#include "files.h"
#include "sha256.h"

using namespace rest_deploy;

namespace {

const std::string kCopy = "sidecar_test.onnx";

void refused(const std::string& model, const std::string& sidecar, const std::string& word) {
  write_all(kCopy, model);
  write_all(kCopy + ".json", sidecar);
  const Result<Sidecar> read = read_sidecar(kCopy);
  if (!CHECK_THAT(!read.ok(), "read; expected a refusal for " + word)) return;
  CHECK(read.status().code() == Code::artifact && !read.status().hint().empty());
  CHECK_THAT(read.status().message().find(word) != std::string::npos,
             read.status().message() + " does not name " + word);
}

// As rest_deploy/artifact.py seals: the hash of the text with an empty seal.
std::string sealed(const std::string& text) {
  const std::string bare = text.substr(0, text.rfind("\n}")) + ",\n  \"seal\": \"\"\n}\n";
  return replaced(bare, "\"seal\": \"\"", "\"seal\": \"" + sha256(bare) + "\"");
}

void seals() {
  const std::string text = sealed("{\n  \"schema\": 1\n}\n");
  CHECK(seal_holds(text));
  CHECK(!seal_holds(replaced(text, "1", "2")));
  CHECK(!seal_holds(text + "\n"));
  CHECK(!seal_holds(""));
  CHECK(!seal_holds("{\n  \"schema\": 1\n}\n"));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string path = std::string(argv[1]) + "/rest_nano.onnx";
  const std::string model = read_all(path), text = read_all(path + ".json");

  const Result<Sidecar> sidecar = read_sidecar(path);
  if (!CHECK_THAT(sidecar.ok(), sidecar.status().text())) return check::result();
  const Sidecar& found = sidecar.value();
  CHECK(found.kind == "onnx" && found.backend.empty() && !found.fit);
  CHECK(found.metadata.name == "rest_nano" && found.metadata.variant == "nano");
  CHECK(found.metadata.num_classes == 22 && found.metadata.labels.size() == 22);
  CHECK(found.metadata.labels[0] == "astronaut");
  CHECK(found.metadata.preprocessing.resize == 256 && found.metadata.preprocessing.crop == 224);
  CHECK(found.metadata.preprocessing.interpolation == Interpolation::bicubic);
  CHECK(found.metadata.preprocessing.mean[0] == 0.485);
  CHECK(found.metadata.sha256 == sha256(model));
  CHECK(found.command.find("export") != std::string::npos);

  std::string other = model;
  other[other.size() / 2] ^= 1;
  refused(other, text, "damaged or replaced");
  refused(model + "x", text, "damaged or replaced");
  refused(model, text.substr(0, text.size() / 2), "damaged");
  refused(model, "", "damaged");
  refused(model, "[1]", "damaged");
  refused(model, replaced(text, "\"schema\": 1", "\"schema\": 2"), "schema");
  refused(model, replaced(text, "\"astronaut\",", ""), "labels");
  refused(model, replaced(text, "\"resize\": 256", "\"resize\": 100"), "preprocessing");
  refused(model, replaced(text, "\"bicubic\"", "\"nearest\""), "preprocessing");
  refused(model, replaced(text, "0.229", "0"), "preprocessing");
  refused(model, replaced(text, "\"input_name\"", "\"input\""), "input_name");
  refused(model, replaced(text, "\"data_sha256\": \"\"", "\"data_sha256\": \"00\""), ".data");

  std::remove((kCopy + ".json").c_str());
  CHECK(read_sidecar(kCopy).status().message().find("no sidecar") != std::string::npos);
  CHECK(read_sidecar("missing.onnx").status().message().find("no such model") !=
        std::string::npos);
  seals();
  return check::result();
}
