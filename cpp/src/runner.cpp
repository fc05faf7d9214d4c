#include "rest_deploy/runner.h"

#include <cstring>
#include <limits>

#include "backends.h"

namespace rest_deploy {
namespace {

bool ends_with(const std::string& text, const std::string& tail) {
  return text.size() >= tail.size() &&
         text.compare(text.size() - tail.size(), tail.size(), tail) == 0;
}

bool finite(const float* values, std::size_t count) {
  // The largest bit pattern without its sign, so that the loop has no branch: infinity and NaN are
  // above all numbers.
  std::uint32_t most = 0;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return most < 0x7f800000;
}

Status without(const std::string& path, const std::string& backend, const std::string& option) {
  return {Code::missing,
          path + " needs " + backend + ", and this library was built without it",
          "configure it with " + option};
}

}  // namespace

std::vector<std::string> built_backends() {
  std::vector<std::string> names;
#ifdef REST_DEPLOY_WITH_OPENVINO
  names.emplace_back("openvino");
#endif
#ifdef REST_DEPLOY_WITH_TENSORRT
  names.emplace_back(REST_DEPLOY_WITH_TENSORRT);
#endif
  return names;
}

Status check_images(const ImageBatch& images) {
  constexpr std::size_t smallest = kSmallestSide, largest = 1 << 20;
  if (images.data != nullptr && images.batch > 0 && images.batch < largest &&
      images.height >= smallest && images.width >= smallest && images.height < largest &&
      images.width < largest) {
    return {};
  }
  return {Code::shape, "got images of shape (" + std::to_string(images.batch) + ", 3, " +
                           std::to_string(images.height) + ", " + std::to_string(images.width) +
                           "); expected (batch, 3, height, width) with height and width of at "
                           "least 32"};
}

void poison(const ImageBatch& images, Logits& logits) {
  const std::size_t each = 3 * images.height * images.width;
  for (std::size_t i = 0; i < images.batch; ++i) {
    if (finite(images.data + i * each, each)) continue;
    for (std::size_t c = 0; c < logits.classes; ++c) {
      logits.values[i * logits.classes + c] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

Result<std::unique_ptr<Runner>> open_runner(const std::string& path, const RunnerOptions& options) {
  if (options.requests < 1 || options.requests > 64 || options.threads < 0 || options.device < 0) {
    return Status(Code::argument, "requests " + std::to_string(options.requests) + ", threads " +
                                      std::to_string(options.threads) + ", device " +
                                      std::to_string(options.device) +
                                      "; expected 1 to 64, and 0 or more");
  }
  const bool engine = ends_with(path, ".engine");
  if (!engine && !ends_with(path, ".onnx")) {
    return Status(Code::artifact, path + " has another suffix; expected a .onnx model or a .engine");
  }
  const Result<Sidecar> sidecar = read_sidecar(path);
  if (!sidecar) return sidecar.status();
  if (engine) {
#ifdef REST_DEPLOY_WITH_TENSORRT
    return open_tensorrt(path, sidecar.value(), options);
#else
    return without(path, sidecar.value().fit->flavour, "-DTENSORRT_ROOT=DIR");
#endif
  }
#ifdef REST_DEPLOY_WITH_OPENVINO
  return open_openvino(path, sidecar.value(), options);
#else
  return without(path, "OpenVINO", "-DREST_DEPLOY_OPENVINO=ON");
#endif
}

}  // namespace rest_deploy
