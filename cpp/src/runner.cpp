#include "rest_deploy/runner.h"

#include <algorithm>
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
  const bool one = (images.data != nullptr) != (images.pixels != nullptr);
  if (one && images.batch > 0 && images.batch < largest && images.height >= smallest &&
      images.width >= smallest && images.height < largest && images.width < largest) {
    return {};
  }
  const bool pixels = images.pixels != nullptr;
  const std::vector<std::size_t> shape =
      pixels ? std::vector<std::size_t>{images.batch, images.height, images.width, 3}
             : std::vector<std::size_t>{images.batch, 3, images.height, images.width};
  return {Code::shape, "got images of shape " + text_of(shape) + "; expected " +
                           (pixels ? "(batch, height, width, 3)" : "(batch, 3, height, width)") +
                           " with height and width of at least 32"};
}

Status check_images(const ImageBatch& images, const Metadata& metadata) {
  if (Status status = check_images(images); !status.ok()) return status;
  const bool pixels = images.pixels != nullptr;
  if (pixels == (metadata.input == InputKind::pixels)) return {};
  if (pixels) {
    return {Code::shape,
            metadata.name + " takes normalized float32 (batch, 3, height, width); got uint8 pixels",
            "normalize() makes such a tensor; rest-deploy export --input uint8 takes pixels"};
  }
  return {Code::shape,
          metadata.name + " takes uint8 pixels (batch, height, width, 3) and normalizes them itself; "
                          "got float32",
          "give what to_pixels() returns, or export it without --input uint8"};
}

std::string text_of(const std::vector<std::size_t>& shape) {
  std::string text;
  for (const std::size_t size : shape) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  return text + ")";
}

Shape input_shape(InputKind kind, const Shape& images) {
  if (kind == InputKind::normalized) return images;
  return {images[0], images[2], images[3], images[1]};
}

Result<Tensors> room_for(const Metadata& metadata, const std::vector<std::string>& names,
                         const ImageBatch& images) {
  Tensors room;
  const auto add = [&](const Output& output) {
    std::vector<std::size_t> shape = shape_of(output, images.batch, images.height, images.width);
    std::size_t size = 1;
    for (const std::size_t length : shape) size *= length;
    room.push_back({output.name, std::move(shape), std::vector<float>(size)});
  };
  if (names.empty()) {
    for (const Output& output : metadata.outputs) add(output);
  }
  for (const std::string& name : names) {
    const Output* output = metadata.find(name);
    if (output == nullptr) {
      return Status(Code::argument,
                    metadata.name + " has no output " + name + "; it gives " + metadata.gives());
    }
    if (std::count(names.begin(), names.end(), name) > 1) {
      return Status(Code::argument, "the output " + name + " is asked for twice");
    }
    add(*output);
  }
  return room;
}

void poison(const ImageBatch& images, Tensors& tensors) {
  if (images.data == nullptr) return;  // every pixel is a number
  const std::size_t each = 3 * images.height * images.width;
  for (std::size_t i = 0; i < images.batch; ++i) {
    if (finite(images.data + i * each, each)) continue;
    for (Tensor& tensor : tensors) {
      const auto row = tensor.values.begin() + static_cast<std::ptrdiff_t>(i * tensor.each());
      std::fill_n(row, tensor.each(), std::numeric_limits<float>::quiet_NaN());
    }
  }
}

Result<Logits> Runner::infer(const ImageBatch& images) const {
  Result<Tensors> found = infer_all(images, {metadata().outputs.front().name});
  if (!found) return found.status();
  Tensor& first = found.value().front();
  return Logits{images.batch, first.each(), std::move(first.values)};
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
