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

void flatten(const Json& value, int depth, std::vector<float>& out) {
  if (value.is_number()) {
    out.push_back(static_cast<float>(value.get<double>()));
  } else if (value.is_array() && depth > 0) {
    for (const Json& item : value) flatten(item, depth - 1, out);
  } else {
    refuse(Code::argument, "data holds " + dump(value) + "; expected numbers in at most 4 arrays");
  }
}

// Shape (N, 3, H, W) of a tensor; its floats without overflow.
std::size_t read_shape(const Json& tensor, Images& images) {
  const Json& shape = member(tensor, "shape", "the input");
  std::vector<std::size_t> sizes;
  if (shape.is_array() && shape.size() == 4) {
    for (const Json& size : shape) sizes.push_back(whole(size, "a dimension", kLargestSide));
  }
  if (sizes.size() != 4 || sizes[0] < 1 || sizes[1] != 3 || sizes[2] < kSmallestSide ||
      sizes[3] < kSmallestSide) {
    refuse(Code::shape, "got shape " + dump(shape) +
                            "; expected [batch, 3, height, width] with height and width of at "
                            "least 32");
  }
  images.batch = sizes[0];
  images.height = sizes[2];
  images.width = sizes[3];
  return sizes[0] * 3 * sizes[2] * sizes[3];  // at most 3 * 2^60: no overflow
}

void read_data(const Json& tensor, std::string_view binary, std::size_t count, Images& images) {
  const Json* size = parameter(tensor, "binary_data_size");
  if (size != nullptr) {
    const std::size_t bytes = whole(*size, "binary_data_size", SIZE_MAX / 2);
    if (bytes / sizeof(float) != count || bytes % sizeof(float) != 0 || bytes != binary.size()) {
      refuse(Code::shape, "the shape takes " + std::to_string(count) + " floats, binary_data_size is " +
                              std::to_string(bytes) + " bytes and " +
                              std::to_string(binary.size()) + " came");
    }
    images.data.resize(count);
    std::memcpy(images.data.data(), binary.data(), bytes);
  } else {
    if (!binary.empty()) refuse(Code::argument, "binary data came, and no binary_data_size");
    flatten(member(tensor, "data", "the input"), 4, images.data);
    if (images.data.size() != count) {
      refuse(Code::shape, "the shape takes " + std::to_string(count) + " numbers, data has " +
                              std::to_string(images.data.size()));
    }
  }
  if (!std::all_of(images.data.begin(), images.data.end(),
                   [](float value) { return std::isfinite(value); })) {
    refuse(Code::argument, "the images have NaN or infinite values");
  }
}

void read_outputs(const Json& root, const Metadata& metadata, InferRequest& request) {
  request.binary = flag(root, "binary_data_output", false);
  if (!root.contains("outputs")) return;
  const Json& outputs = root.at("outputs");
  if (!outputs.is_array() || outputs.size() > 1) {
    refuse(Code::argument, "outputs is no array of one: the model has the output " +
                               metadata.output_name);
  }
  if (outputs.empty()) return;
  const Json& output = outputs.at(0);
  const Json& name = member(output, "name", "the output");
  if (name != metadata.output_name) {
    refuse(Code::argument, "no output " + dump(name) + "; expected " + metadata.output_name);
  }
  request.binary = flag(output, "binary_data", request.binary);
  if (const Json* classes = parameter(output, "classification")) {
    const std::size_t most = static_cast<std::size_t>(metadata.num_classes);
    request.classes = whole(*classes, "classification", most);
  }
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
  const Json& type = member(input, "datatype", "the input");
  if (type != "FP32") refuse(Code::argument, "datatype is " + dump(type) + "; expected \"FP32\"");
  if (parameter(input, "shared_memory_region") != nullptr) {
    refuse(Code::argument, "this server has no shared memory; send the data");
  }
  const std::size_t count = read_shape(input, request.images);
  read_data(input, body.substr(size), count, request.images);
  read_outputs(root, metadata, request);
  if (const Json* timeout = parameter(root, "timeout")) {
    request.timeout_us = static_cast<std::int64_t>(whole(*timeout, "timeout", 3'600'000'000));
  }
  return request;
}

// "logit:index:label" of the most probable classes, row by row.
std::vector<std::string> best_texts(const Logits& logits, std::size_t classes,
                                    const Metadata& metadata) {
  std::vector<std::string> texts;
  for (std::size_t image = 0; image < logits.batch; ++image) {
    const float* row = logits.row(image);
    std::vector<std::size_t> order(logits.classes);
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

Result<Body> format_response(const InferRequest& request, const Logits& logits,
                             const Metadata& metadata, const std::string& model) {
  if (!std::all_of(logits.values.begin(), logits.values.end(),
                   [](float value) { return std::isfinite(value); })) {
    return Status(Code::internal, "the model returned NaN or infinite logits",
                  "rest-deploy verify shows where it departs from the reference");
  }
  Ordered output{{"name", metadata.output_name}};
  std::string binary;
  if (request.classes > 0) {
    const std::vector<std::string> texts = best_texts(logits, request.classes, metadata);
    output["datatype"] = "BYTES";
    output["shape"] = {logits.batch, request.classes};
    if (request.binary) {
      binary = binary_strings(texts);
    } else {
      output["data"] = texts;
    }
  } else {
    output["datatype"] = "FP32";
    output["shape"] = {logits.batch, logits.classes};
    if (request.binary) {
      binary.resize(logits.values.size() * sizeof(float));
      std::memcpy(binary.data(), logits.values.data(), binary.size());
    } else {
      output["data"] = logits.values;
    }
  }
  if (request.binary) output["parameters"] = {{"binary_data_size", binary.size()}};
  Ordered root{{"model_name", model}, {"model_version", kVersion}};
  if (!request.id.empty()) root["id"] = request.id;
  root["outputs"] = Ordered::array({output});
  Body body{dump(root), std::nullopt};
  if (request.binary) {
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
  const Ordered input{{"name", metadata.input_name}, {"datatype", "FP32"}, {"shape", {-1, 3, -1, -1}}};
  const int classes = metadata.num_classes > 0 ? metadata.num_classes : -1;
  const Ordered output{{"name", metadata.output_name}, {"datatype", "FP32"}, {"shape", {-1, classes}}};
  return dump(Ordered{{"name", model},
                      {"versions", Ordered::array({kVersion})},
                      {"platform", backend},
                      {"inputs", Ordered::array({input})},
                      {"outputs", Ordered::array({output})}});
}

std::string error_body(const Status& status) { return dump(Ordered{{"error", status.text()}}); }

}  // namespace rest_deploy::serve
