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

// What older and newer files say of their outputs and input.
void signatures(const std::string& text) {
  const auto with = [&](const std::string& outputs, const std::string& input = "float",
                        const std::string& first = "logits") {
    std::string changed = replaced(text, "\"output_name\": \"logits\"",
                                   "\"output_name\": \"" + first + "\"");
    const std::size_t from = changed.find("\"outputs\":");
    if (from != std::string::npos) {  // this exporter names them: they are another's
      changed.replace(from, 9, "\"old_outputs\"");
      changed = replaced(changed, "\"input_kind\":", "\"old_input_kind\":");
    }
    if (outputs.empty()) return changed;
    return replaced(changed, "\"input_name\":", "\"outputs\": " + outputs + ", \"input_kind\": \"" +
                                                    input + "\", \"input_name\":");
  };
  const Result<Sidecar> old = parse_sidecar(with(""), "x");
  if (CHECK_THAT(old.ok(), old.status().text())) {
    const Metadata& found = old.value().metadata;
    CHECK(found.input == InputKind::normalized && found.outputs.size() == 1);
    CHECK(found.outputs[0].name == "logits" && found.outputs[0].channels == 22);
    CHECK(found.scores() == &found.outputs[0] && found.find(OutputKind::embedding) == nullptr);
  }
  const std::string headless = replaced(with("", "", "embedding"), "\"num_classes\": 22", "\"num_classes\": 0");
  const std::size_t labels = headless.find("\"labels\": [\n"), end = headless.find(']', labels);
  const std::string bare = headless.substr(0, labels) + "\"labels\": [" + headless.substr(end);
  const Result<Sidecar> embedding = parse_sidecar(bare, "x");
  if (CHECK_THAT(embedding.ok(), embedding.status().text())) {
    const Output& found = embedding.value().metadata.outputs.at(0);
    CHECK(found.name == "embedding" && found.kind == OutputKind::embedding && found.channels > 22);
    CHECK(embedding.value().metadata.scores() == nullptr);
  }
  const std::string good =
      R"([{"name": "embedding", "kind": "embedding", "channels": 64, "unit_length": true},)"
      R"( {"name": "c2", "kind": "features", "channels": 8, "stride": 4},)"
      R"( {"name": "probabilities", "kind": "probabilities", "channels": 22}])";
  const Result<Sidecar> several = parse_sidecar(with(good, "uint8", "embedding"), "x");
  if (CHECK_THAT(several.ok(), several.status().text())) {
    const Metadata& found = several.value().metadata;
    CHECK(found.input == InputKind::pixels && found.gives() == "embedding, c2, probabilities");
    CHECK(found.outputs[0].unit_length && found.outputs[1].stride == 4);
    CHECK(found.scores() == &found.outputs[2] && found.find("c2") == &found.outputs[1]);
    CHECK(shape_of(found.outputs[1], 2, 97, 131) == std::vector<std::size_t>({2, 8, 25, 33}));
    CHECK(shape_of(found.outputs[0], 2, 97, 131) == std::vector<std::size_t>({2, 64}));
  }
  const auto bad = [&](const std::string& sidecar) {
    CHECK_THAT(!parse_sidecar(sidecar, "x").ok(), sidecar.substr(0, 2000));
  };
  bad(with(good, "uint8"));  // output_name is another
  bad(with(good, "int8", "embedding"));
  bad(with(replaced(good, "\"kind\": \"embedding\"", "\"kind\": \"vector\""), "float", "embedding"));
  bad(with(replaced(good, "\"channels\": 22", "\"channels\": 21"), "float", "embedding"));
  bad(with(replaced(good, "\"channels\": 64", "\"channels\": 0"), "float", "embedding"));
  bad(with(replaced(good, "\"channels\": 64", "\"channels\": 99999999"), "float", "embedding"));
  bad(with(replaced(good, "\"stride\": 4", "\"stride\": 0"), "float", "embedding"));
  bad(with(replaced(good, "\"name\": \"c2\"", "\"name\": \"embedding\""), "float", "embedding"));
  bad(with("{}", "float"));
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

  signatures(text);

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
