#include "protocol.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

namespace rest_deploy::serve {
namespace {

using Json = nlohmann::json;
using Ordered = nlohmann::ordered_json;

constexpr std::size_t kLargestSide = 1 << 20;

const char* datatype(InputKind kind) { return kind == InputKind::pixels ? "UINT8" : "FP32"; }

// Leaves the parser as an exception, comes out of this file as a Status.
struct Refusal {
  Status status;
};

[[noreturn]] void refuse(Code code, const std::string& message) {
  throw Refusal{Status(code, message)};
}

std::string dump(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 80) + "...";
}

std::string dump(const Ordered& value) {
  return value.dump(-1, ' ', false, Ordered::error_handler_t::replace);
}

const Json& member(const Json& object, const char* name, const char* of) {
  if (!object.is_object() || !object.contains(name)) {
    refuse(Code::argument, std::string("no ") + name + " in " + of);
  }
  return object.at(name);
}

const Json* parameter(const Json& object, const char* name) {
  if (!object.contains("parameters")) return nullptr;
  const Json& parameters = object.at("parameters");
  if (!parameters.is_object()) refuse(Code::argument, "parameters is no object");
  return parameters.contains(name) ? &parameters.at(name) : nullptr;
}

bool flag(const Json& object, const char* name, bool otherwise) {
  const Json* value = parameter(object, name);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) refuse(Code::argument, std::string(name) + " is no boolean");
  return value->get<bool>();
}

std::size_t whole(const Json& value, const std::string& what, std::size_t most) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > most) {
    refuse(Code::argument, what + " is " + dump(value) + "; expected 0 to " + std::to_string(most));
  }
  return value.get<std::size_t>();
}

// Numbers of an array in arrays, in their order. read: of one of them.
template <class T, class Read>
void flatten(const Json& value, int depth, Read read, std::vector<T>& out) {
  if (value.is_number()) {
    out.push_back(read(value));
  } else if (value.is_array() && depth > 0) {
    for (const Json& item : value) flatten(item, depth - 1, read, out);
  } else {
    refuse(Code::argument, "data holds " + dump(value) + "; expected numbers in at most 4 arrays");
  }
}

float as_float(const Json& value) { return static_cast<float>(value.get<double>()); }

std::uint8_t as_pixel(const Json& value) {
  return static_cast<std::uint8_t>(whole(value, "a pixel", 255));
}

// Shape of the images, (N, 3, H, W) or (N, H, W, 3); their values, without overflow.
std::size_t read_shape(const Json& tensor, InputKind kind, Images& images) {
  const Json& shape = member(tensor, "shape", "the input");
  std::vector<std::size_t> sizes;
  if (shape.is_array() && shape.size() == 4) {
    for (const Json& size : shape) sizes.push_back(whole(size, "a dimension", kLargestSide));
  }
  const bool pixels = kind == InputKind::pixels;
  const std::size_t channels = pixels ? 3 : 1, height = pixels ? 1 : 2;
  if (sizes.size() != 4 || sizes[0] < 1 || sizes[channels] != 3 ||
      sizes[height] < kSmallestSide || sizes[height + 1] < kSmallestSide) {
    refuse(Code::shape, "got shape " + dump(shape) + "; expected " +
                            (pixels ? "[batch, height, width, 3]" : "[batch, 3, height, width]") +
                            " with height and width of at least 32");
  }
  images.batch = sizes[0];
  images.height = sizes[height];
  images.width = sizes[height + 1];
  return images.view().size();  // at most 3 * 2^60: no overflow
}

// The values of a tensor: behind the JSON, or in it.
template <class T, class Read>
void read_data(const Json& tensor, std::string_view binary, std::size_t count, Read read,
               std::vector<T>& values) {
  const Json* size = parameter(tensor, "binary_data_size");
  if (size != nullptr) {
    const std::size_t bytes = whole(*size, "binary_data_size", SIZE_MAX / 2);
    if (bytes / sizeof(T) != count || bytes % sizeof(T) != 0 || bytes != binary.size()) {
      refuse(Code::shape, "the shape takes " + std::to_string(count) + " values of " +
                              std::to_string(sizeof(T)) + " bytes, binary_data_size is " +
                              std::to_string(bytes) + " bytes and " +
                              std::to_string(binary.size()) + " came");
    }
    values.resize(count);
    std::memcpy(values.data(), binary.data(), bytes);
  } else {
    if (!binary.empty()) refuse(Code::argument, "binary data came, and no binary_data_size");
    flatten(member(tensor, "data", "the input"), 4, read, values);
    if (values.size() != count) {
      refuse(Code::shape, "the shape takes " + std::to_string(count) + " numbers, data has " +
                              std::to_string(values.size()));
    }
  }
}

void read_images(const Json& input, std::string_view binary, InputKind kind, Images& images) {
  const char* expected = datatype(kind);
  const Json& type = member(input, "datatype", "the input");
  if (type != expected) {
    refuse(Code::argument, "datatype is " + dump(type) + "; expected \"" + expected + "\"");
  }
  if (parameter(input, "shared_memory_region") != nullptr) {
    refuse(Code::argument, "this server has no shared memory; send the data");
  }
  const std::size_t count = read_shape(input, kind, images);
  if (kind == InputKind::pixels) return read_data(input, binary, count, as_pixel, images.pixels);
  read_data(input, binary, count, as_float, images.data);
  if (!std::all_of(images.data.begin(), images.data.end(),
                   [](float value) { return std::isfinite(value); })) {
    refuse(Code::argument, "the images have NaN or infinite values");
  }
}

// One of the model's outputs that the request names.
WantedOutput read_output(const Json& output, bool binary, const Metadata& metadata) {
  const Json& name = member(output, "name", "the output");
  const Output* found =
      name.is_string() ? metadata.find(name.get<std::string>()) : nullptr;
  if (found == nullptr) {
    refuse(Code::argument, "no output " + dump(name) + "; expected " + metadata.gives());
  }
  WantedOutput wanted{found->name, flag(output, "binary_data", binary), 0};
  if (const Json* classes = parameter(output, "classification")) {
    const bool scores =
        found->kind == OutputKind::logits || found->kind == OutputKind::probabilities;
    if (!scores) refuse(Code::argument, "the output " + found->name + " has no classes");
    wanted.classes = whole(*classes, "classification", found->channels);
  }
  return wanted;
}

// Those asked for, in their order; all, in the model's, where none is named.
std::vector<WantedOutput> read_outputs(const Json& root, const Metadata& metadata) {
  const bool binary = flag(root, "binary_data_output", false);
  std::vector<WantedOutput> wanted;
  if (root.contains("outputs")) {
    const Json& outputs = root.at("outputs");
    if (!outputs.is_array() || outputs.size() > metadata.outputs.size()) {
      refuse(Code::argument, "outputs is no array of at most " +
                                 std::to_string(metadata.outputs.size()) + "; the model gives " +
                                 metadata.gives());
    }
    for (const Json& output : outputs) {
      wanted.push_back(read_output(output, binary, metadata));
      for (std::size_t i = 0; i + 1 < wanted.size(); ++i) {
        if (wanted[i].name == wanted.back().name) {
          refuse(Code::argument, "the output " + wanted[i].name + " is asked for twice");
        }
      }
    }
  }
  if (wanted.empty()) {
    for (const Output& output : metadata.outputs) wanted.push_back({output.name, binary, 0});
  }
  return wanted;
}

InferRequest read_request(std::string_view body, std::optional<std::size_t> json_size,
                          const Metadata& metadata) {
  const std::size_t size = json_size.value_or(body.size());
  if (size > body.size()) {
    refuse(Code::argument, "Inference-Header-Content-Length is " + std::to_string(size) + ", and " +
                               std::to_string(body.size()) + " bytes came");
  }
  const Json root = Json::parse(body.substr(0, size));
  if (!root.is_object()) refuse(Code::argument, "the request is no JSON object");
  InferRequest request;
  if (root.contains("id")) {
    if (!root.at("id").is_string()) refuse(Code::argument, "id is no string");
    request.id = root.at("id").get<std::string>();
  }
  const Json& inputs = member(root, "inputs", "the request");
  if (!inputs.is_array() || inputs.size() != 1) {
    refuse(Code::argument, "inputs is no array of one: the model has the input " +
                               metadata.input_name);
  }
  const Json& input = inputs.at(0);
  const Json& name = member(input, "name", "the input");
  if (name != metadata.input_name) {
    refuse(Code::argument, "no input " + dump(name) + "; expected " + metadata.input_name);
  }
  read_images(input, body.substr(size), metadata.input, request.images);
  request.outputs = read_outputs(root, metadata);
  if (const Json* timeout = parameter(root, "timeout")) {
    request.timeout_us = static_cast<std::int64_t>(whole(*timeout, "timeout", 3'600'000'000));
  }
  return request;
}

// "value:index:label" of the highest classes, row by row.
std::vector<std::string> best_texts(const Tensor& scores, std::size_t classes,
                                    const Metadata& metadata) {
  std::vector<std::string> texts;
  for (std::size_t image = 0; image < scores.shape[0]; ++image) {
    const float* row = scores.row(image);
    std::vector<std::size_t> order(scores.each());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [row](std::size_t a, std::size_t b) { return row[a] > row[b]; });
    for (std::size_t i = 0; i < classes; ++i) {
      char value[32];
      std::snprintf(value, sizeof value, "%f", static_cast<double>(row[order[i]]));
      texts.push_back(std::string(value) + ":" + std::to_string(order[i]) + ":" +
                      metadata.labels[order[i]]);
    }
  }
  return texts;
}

// Each string behind its length, 4 bytes little-endian.
std::string binary_strings(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) {
    for (int shift = 0; shift < 32; shift += 8) {
      out += static_cast<char>(text.size() >> shift & 0xff);
    }
    out += text;
  }
  return out;
}

// One output as JSON; what goes behind it is appended to `binary`.
Ordered formatted(const WantedOutput& wanted, const Tensor& tensor, const Metadata& metadata,
                  std::string& binary) {
  Ordered output{{"name", wanted.name}};
  const std::size_t before = binary.size();
  if (wanted.classes > 0) {
    const std::vector<std::string> texts = best_texts(tensor, wanted.classes, metadata);
    output["datatype"] = "BYTES";
    output["shape"] = {tensor.shape[0], wanted.classes};
    if (wanted.binary) {
      binary += binary_strings(texts);
    } else {
      output["data"] = texts;
    }
  } else {
    output["datatype"] = "FP32";
    output["shape"] = tensor.shape;
    if (wanted.binary) {
      binary.append(reinterpret_cast<const char*>(tensor.values.data()),
                    tensor.values.size() * sizeof(float));
    } else {
      output["data"] = tensor.values;
    }
  }
  if (wanted.binary) output["parameters"] = {{"binary_data_size", binary.size() - before}};
  return output;
}

}  // namespace

Result<InferRequest> parse_request(std::string_view body, std::optional<std::size_t> json_size,
                                   const Metadata& metadata) {
  try {
    return read_request(body, json_size, metadata);
  } catch (const Refusal& refusal) {
    return refusal.status;
  } catch (const Json::exception& error) {
    return Status(Code::argument, std::string("the request is no valid JSON: ") + error.what());
  }
}

std::vector<std::string> InferRequest::names() const {
  std::vector<std::string> found;
  for (const WantedOutput& output : outputs) found.push_back(output.name);
  return found;
}

Result<Body> format_response(const InferRequest& request, const Tensors& tensors,
                             const Metadata& metadata, const std::string& model) {
  Ordered outputs = Ordered::array();
  std::string binary;
  bool any_binary = false;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::vector<float>& values = tensors[i].values;
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
      return Status(Code::internal, "the model returned NaN or infinite " + tensors[i].name,
                    "rest-deploy verify shows where it departs from the reference");
    }
    outputs.push_back(formatted(request.outputs[i], tensors[i], metadata, binary));
    any_binary = any_binary || request.outputs[i].binary;
  }
  Ordered root{{"model_name", model}, {"model_version", kVersion}};
  if (!request.id.empty()) root["id"] = request.id;
  root["outputs"] = std::move(outputs);
  Body body{dump(root), std::nullopt};
  if (any_binary) {
    body.json_size = body.content.size();
    body.content += binary;
  }
  return body;
}

std::string server_metadata() {
  return dump(Ordered{{"name", "rest-deploy"},
                      {"version", REST_DEPLOY_VERSION},
                      {"extensions", {"binary_tensor_data", "classification"}}});
}

std::string model_metadata(const Metadata& metadata, const std::string& model,
                           const std::string& backend) {
  const bool pixels = metadata.input == InputKind::pixels;
  const Ordered input{{"name", metadata.input_name},
                      {"datatype", datatype(metadata.input)},
                      {"shape", pixels ? Ordered{-1, -1, -1, 3} : Ordered{-1, 3, -1, -1}}};
  Ordered outputs = Ordered::array();
  for (const Output& output : metadata.outputs) {
    Ordered shape{-1, output.channels};
    if (output.stride > 0) shape.insert(shape.end(), {-1, -1});
    outputs.push_back({{"name", output.name}, {"datatype", "FP32"}, {"shape", std::move(shape)}});
  }
  return dump(Ordered{{"name", model},
                      {"versions", Ordered::array({kVersion})},
                      {"platform", backend},
                      {"inputs", Ordered::array({input})},
                      {"outputs", std::move(outputs)}});
}

std::string error_body(const Status& status) { return dump(Ordered{{"error", status.text()}}); }

}  // namespace rest_deploy::serve
