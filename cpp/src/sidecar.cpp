#include "sidecar.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "selftest.h"
#include "sha256.h"

namespace rest_deploy {
namespace {

using Json = nlohmann::json;

// So that no shape overflows, whatever a damaged file says.
constexpr std::size_t kMostChannels = 1 << 24;
constexpr std::size_t kLargestStride = 1 << 10;
constexpr std::size_t kMostProbed = 4096;

bool ends_with(std::string_view text, std::string_view tail) {
  return text.size() >= tail.size() && text.substr(text.size() - tail.size()) == tail;
}

bool exists(const std::string& path) { return std::ifstream(path).good(); }

std::string text_or_empty(const Json& object, const char* name) {
  return object.contains(name) ? object.at(name).get<std::string>() : std::string();
}

Preprocessing preprocessing_of(const Json& json) {
  Preprocessing how;
  how.resize = json.at("resize").get<int>();
  how.crop = json.at("crop").get<int>();
  const std::string kind = json.at("interpolation").get<std::string>();
  how.interpolation = kind == "bilinear" ? Interpolation::bilinear : Interpolation::bicubic;
  how.mean = json.at("mean").get<std::array<double, 3>>();
  how.std = json.at("std").get<std::array<double, 3>>();
  bool fits = (kind == "bilinear" || kind == "bicubic") && how.crop >= kSmallestSide &&
              how.resize >= how.crop;
  for (std::size_t c = 0; c < 3; ++c) {
    fits = fits && std::isfinite(how.mean[c]) && std::isfinite(how.std[c]) && how.std[c] > 0;
  }
  if (!fits) throw std::invalid_argument("its preprocessing is outside the limits");
  return how;
}

OutputKind kind_of(const std::string& name) {
  for (const OutputKind kind : {OutputKind::logits, OutputKind::probabilities,
                                OutputKind::embedding, OutputKind::features}) {
    if (name == name_of(kind)) return kind;
  }
  throw std::invalid_argument("it has outputs of a kind " + name);
}

// An output that is one: its numbers are those of the classes, or of a map.
Output output_of(const Json& json, int classes) {
  Output output;
  output.name = json.at("name").get<std::string>();
  output.kind = kind_of(json.at("kind").get<std::string>());
  output.channels = json.at("channels").get<std::size_t>();
  output.stride = json.value("stride", std::size_t{0});
  output.unit_length = json.value("unit_length", false);
  const bool scores = output.kind == OutputKind::logits || output.kind == OutputKind::probabilities;
  const bool map = output.kind == OutputKind::features;
  if (output.name.empty() || output.channels < 1 || output.channels > kMostChannels ||
      output.stride > kLargestStride || map != (output.stride > 0) ||
      (scores && output.channels != static_cast<std::size_t>(classes))) {
    throw std::invalid_argument("its output " + output.name + " is outside the limits");
  }
  return output;
}

// Of a file of the first exports, which names none: its one output.
Output only_output(const Json& json, const Metadata& metadata) {
  if (metadata.num_classes > 0) {
    return {metadata.output_name, OutputKind::logits,
            static_cast<std::size_t>(metadata.num_classes), 0, false};
  }
  const auto dims = json.at("card").at("architecture").at("dims").get<std::array<std::size_t, 4>>();
  return {metadata.output_name, OutputKind::embedding, dims[3], 0, false};
}

void read_signature(const Json& json, Metadata& metadata) {
  const std::string input = json.value("input_kind", std::string("float"));
  if (input != "float" && input != "uint8") {
    throw std::invalid_argument("its input_kind is " + input + "; expected float or uint8");
  }
  metadata.input = input == "uint8" ? InputKind::pixels : InputKind::normalized;
  if (json.contains("outputs")) {
    if (!json.at("outputs").is_array()) throw std::invalid_argument("its outputs are no array");
    for (const Json& output : json.at("outputs")) {
      metadata.outputs.push_back(output_of(output, metadata.num_classes));
    }
  }
  if (metadata.outputs.empty()) metadata.outputs.push_back(only_output(json, metadata));
  for (const Output& output : metadata.outputs) {
    if (metadata.find(output.name) != &output) {
      throw std::invalid_argument("it has two outputs " + output.name);
    }
  }
  if (metadata.outputs.front().name != metadata.output_name) {
    throw std::invalid_argument("its output_name is " + metadata.output_name +
                                ", and its first output " + metadata.outputs.front().name);
  }
}

Metadata metadata_of(const Json& json) {
  Metadata metadata;
  if (json.at("schema").get<int>() != 1) throw std::invalid_argument("its schema is not 1");
  const Json& card = json.at("card");
  metadata.name = card.at("name").get<std::string>();
  metadata.variant = json.at("variant").get<std::string>();
  metadata.num_classes = json.at("num_classes").get<int>();
  metadata.labels = json.at("labels").get<std::vector<std::string>>();
  metadata.input_name = json.at("input_name").get<std::string>();
  metadata.output_name = json.at("output_name").get<std::string>();
  metadata.preprocessing = preprocessing_of(card.at("preprocessing"));
  if (metadata.num_classes < 0 ||
      metadata.labels.size() != static_cast<std::size_t>(metadata.num_classes)) {
    throw std::invalid_argument("it has " + std::to_string(metadata.labels.size()) +
                                " labels for " + std::to_string(metadata.num_classes) +
                                " classes");
  }
  read_signature(json, metadata);
  return metadata;
}

EngineFit fit_of(const Json& json) {
  EngineFit fit;
  fit.flavour = json.at("flavour").get<std::string>();
  fit.version = json.at("version").get<std::string>();
  fit.sms = json.at("sms").get<std::vector<std::string>>();
  fit.driver = json.at("driver").get<std::string>();
  fit.options = json.at("options").get<std::map<std::string, std::string>>();
  return fit;
}

bool there(const Json& object, const char* name) {
  return object.contains(name) && !object.at(name).is_null();
}

Site site_of(const Json& json) {
  return {json.at("cpu").get<std::string>(),
          json.at("features").get<std::vector<std::string>>(),
          json.at("backend").get<std::string>(),
          json.at("version").get<std::string>(),
          json.at("threads").get<std::string>(),
          text_or_empty(json, "gpu"),
          text_or_empty(json, "driver")};
}

// Little-endian float32 in base64.
std::vector<float> floats_of(const std::string& text) {
  std::string bytes;
  if (!from_base64(text, bytes) || bytes.size() % sizeof(float) != 0) {
    throw std::invalid_argument("the answers in its self-test are no numbers");
  }
  std::vector<float> values;
  for (std::size_t i = 0; i < bytes.size(); i += sizeof(float)) {
    std::uint32_t bits = 0;
    for (std::size_t k = 0; k < sizeof bits; ++k) {
      bits |= static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i + k])) << 8 * k;
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    values.push_back(value);
  }
  return values;
}

SelfTest selftest_of(const Json& json) {
  SelfTest test;
  test.probes = json.at("probes").get<std::vector<std::string>>();
  test.reference = json.at("reference").get<std::string>();
  test.batch = json.value("batch", std::size_t{1});
  for (const Json& one : json.at("expected")) {
    Expected expected{one.at("name").get<std::string>(),
                      floats_of(one.at("values").get<std::string>()),
                      one.at("bound").get<double>(), std::nullopt};
    if (there(one, "built")) expected.built = one.at("built").get<double>();
    test.expected.push_back(std::move(expected));
  }
  if (test.batch < 1 || test.batch > kMostProbed) {
    throw std::invalid_argument("its self-test asks for a batch of " + std::to_string(test.batch));
  }
  return test;
}

Sidecar sidecar_of(const Json& json) {
  Sidecar sidecar;
  if (json.at("schema").get<int>() != 1) throw std::invalid_argument("its schema is not 1");
  sidecar.kind = json.at("kind").get<std::string>();
  sidecar.sha256 = json.at("sha256").get<std::string>();
  sidecar.data_sha256 = text_or_empty(json, "data_sha256");
  sidecar.command = json.at("command").get<std::string>();
  sidecar.metadata = metadata_of(json.at("metadata"));
  sidecar.metadata.sha256 = sidecar.sha256;
  if (there(json, "build")) {
    const Json& build = json.at("build");
    sidecar.backend = build.at("backend").get<std::string>();
    sidecar.precision = build.at("precision").get<std::string>();
    sidecar.rest = text_or_empty(build, "rest");
    if (there(build, "fit")) sidecar.fit = fit_of(build.at("fit"));
    sidecar.gated = there(build, "gate");
    if (there(build, "site")) sidecar.site = site_of(build.at("site"));
    if (there(build, "selftest")) sidecar.selftest = selftest_of(build.at("selftest"));
  }
  return sidecar;
}

Status check_hash(const std::string& path, const std::string& expected, const std::string& hint) {
  const Result<std::string> actual = sha256_file(path);
  if (!actual) return {Code::artifact, actual.status().message(), hint};
  if (actual.value() == expected) return {};
  return {Code::artifact,
          path + " has sha256 " + actual.value().substr(0, 12) + ", its sidecar describes " +
              expected.substr(0, 12) + ": it was damaged or replaced",
          hint};
}

}  // namespace

Result<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Status(Code::artifact, "cannot read " + path);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) return Status(Code::artifact, "cannot read " + path);
  return text;
}

Result<Sidecar> parse_sidecar(std::string_view text, const std::string& path) {
  try {
    Sidecar sidecar = sidecar_of(Json::parse(text));
    sidecar.text_sha256 = sha256(text);
    return sidecar;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {  // of the JSON library, or ours above
    return Status(Code::artifact, "the sidecar " + path + " is damaged: " + error.what(),
                  "export or build the model again");
  }
}

bool seal_holds(std::string_view text) {
  constexpr std::string_view before = "\n  \"seal\": \"", after = "\"\n}\n";
  constexpr std::size_t digits = 64;
  const std::size_t tail = digits + after.size();
  if (text.size() < before.size() + tail || !ends_with(text, after)) return false;
  const std::string_view head = text.substr(0, text.size() - tail);
  if (!ends_with(head, before)) return false;
  Sha256 hash;
  hash.update(head.data(), head.size());
  hash.update(after.data(), after.size());
  return hash.hex() == text.substr(head.size(), digits);
}

Result<Sidecar> read_sidecar(const std::string& artifact) {
  if (!exists(artifact)) {
    return Status(Code::artifact, "no such model: " + artifact, "rest-deploy export");
  }
  const std::string path = artifact + ".json";
  if (!exists(path)) {
    return Status(Code::artifact, artifact + " has no sidecar " + path + ": nothing says what it is",
                  "copy it from where the model was made, or make the model again: rest-deploy export");
  }
  const Result<std::string> text = read_text(path);
  if (!text) return text.status();
  Result<Sidecar> sidecar = parse_sidecar(text.value(), path);
  if (!sidecar) return sidecar;
  const Sidecar& found = sidecar.value();
  const bool engine = ends_with(artifact, ".engine");
  if ((found.kind == "engine" && found.fit.has_value()) != engine) {
    return Status(Code::artifact, "the sidecar of " + artifact + " describes another kind of file",
                  found.command);
  }
  if (engine && !seal_holds(text.value())) {
    return Status(Code::artifact, "the sidecar " + path + " was changed after it was written",
                  found.command);
  }
  if (Status status = check_hash(artifact, found.sha256, found.command); !status.ok()) {
    return status;
  }
  if (!found.data_sha256.empty()) {
    if (Status status = check_hash(artifact + ".data", found.data_sha256, found.command);
        !status.ok()) {
      return status;
    }
  }
  return sidecar;
}

}  // namespace rest_deploy
