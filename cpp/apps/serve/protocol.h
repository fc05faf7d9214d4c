// The Open Inference Protocol v2 over HTTP, with Triton's binary tensors and classification.
#ifndef REST_DEPLOY_APPS_SERVE_PROTOCOL_H
#define REST_DEPLOY_APPS_SERVE_PROTOCOL_H

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "batcher.h"
#include "rest_deploy/runner.h"

namespace rest_deploy::serve {

// The one version that this server has of its model.
inline constexpr const char* kVersion = "1";

// binary: as raw bytes behind the JSON. classes: > 0: that many "value:index:label" instead of values.
struct WantedOutput {
  std::string name;
  bool binary = false;
  std::size_t classes = 0;
};

struct InferRequest {
  std::string id;
  Images images;
  std::vector<WantedOutput> outputs;  // in the order asked for; at least one
  std::int64_t timeout_us = 0;        // 0: none

  std::vector<std::string> names() const;
};

// An answer's body. json_size: bytes of the JSON before binary tensors; nothing: all of it is JSON.
struct Body {
  std::string content;
  std::optional<std::size_t> json_size;
};

// body: JSON, with `json_size` the first so many bytes and tensors behind them.
// Code::argument or Code::shape, saying what arrived and what was expected.
Result<InferRequest> parse_request(std::string_view body, std::optional<std::size_t> json_size,
                                   const Metadata& metadata);

// tensors: those of `request.outputs`, in their order. Code::internal for values that are not finite:
// JSON has no word for them.
Result<Body> format_response(const InferRequest& request, const Tensors& tensors,
                             const Metadata& metadata, const std::string& model);

std::string server_metadata();
// backend: a runner's name, "openvino/cpu".
std::string model_metadata(const Metadata& metadata, const std::string& model,
                           const std::string& backend);
// {"error": …}
std::string error_body(const Status& status);

}  // namespace rest_deploy::serve

#endif
