// A loaded model: images in, its outputs out. The contract of runtime/session.py.
//
// Ownership: a Runner owns its engine; what it is given and what it returns belong to the caller.
// Threads: every const function may be called from any number of threads at once.
// Units: pixels; float32 batches of whole images (N, 3, H, W) in RGB planes, or uint8 ones (N, H, W,
// 3), without padding.
#ifndef REST_DEPLOY_RUNNER_H
#define REST_DEPLOY_RUNNER_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "rest_deploy/api.h"
#include "rest_deploy/preprocess.h"
#include "rest_deploy/signature.h"
#include "rest_deploy/status.h"

namespace rest_deploy {

// What the model file says of itself, from its sidecar.
struct Metadata {
  std::string name;     // of its card, e.g. "rest_lite"
  std::string variant;  // "lite"
  int num_classes = 0;  // 0: no classifier
  std::vector<std::string> labels;  // one a class
  std::string input_name;
  std::string output_name;  // the first of `outputs`
  std::string sha256;  // of the model file, hexadecimal
  Preprocessing preprocessing;
  InputKind input = InputKind::normalized;
  std::vector<Output> outputs;  // in the model's order, at least one

  // The first of a kind, that of a name; nullptr where there is none. Theirs as long as this lives.
  REST_DEPLOY_API const Output* find(OutputKind kind) const noexcept;
  REST_DEPLOY_API const Output* find(const std::string& output_name) const noexcept;
  // What classes are read from: logits, else probabilities.
  REST_DEPLOY_API const Output* scores() const noexcept;
  // "logits, embedding", for messages.
  REST_DEPLOY_API std::string gives() const;
};

// Not owned, outliving the call: batch x 3 x height x width floats, or batch x height x width x 3
// pixels for a model that takes those.
struct ImageBatch {
  const float* data = nullptr;
  std::size_t batch = 0;
  std::size_t height = 0;
  std::size_t width = 0;
  const std::uint8_t* pixels = nullptr;  // instead of `data`

  std::size_t size() const noexcept { return batch * 3 * height * width; }
};

inline ImageBatch pixel_batch(const std::uint8_t* pixels, std::size_t batch, std::size_t height,
                              std::size_t width) {
  return {nullptr, batch, height, width, pixels};
}

// The same, owned.
struct Images {
  std::vector<float> data;
  std::size_t batch = 0;
  std::size_t height = 0;
  std::size_t width = 0;
  std::vector<std::uint8_t> pixels;

  ImageBatch view() const noexcept {
    return {data.empty() ? nullptr : data.data(), batch, height, width,
            pixels.empty() ? nullptr : pixels.data()};
  }
};

// One output for a batch: (batch, channels) or (batch, channels, height, width) float32.
struct Tensor {
  std::string name;
  std::vector<std::size_t> shape;
  std::vector<float> values;

  // Values of one image.
  std::size_t each() const noexcept { return shape[0] == 0 ? 0 : values.size() / shape[0]; }
  const float* row(std::size_t index) const { return values.data() + index * each(); }
};

using Tensors = std::vector<Tensor>;

// batch x classes float32, row by row: the first output, of a map all values of an image.
struct Logits {
  std::size_t batch = 0;
  std::size_t classes = 0;
  std::vector<float> values;

  const float* row(std::size_t index) const { return values.data() + index * classes; }
};

class Runner {
 public:
  Runner() = default;
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;
  virtual ~Runner() = default;

  // Backend and the part of a device that really runs: "openvino/cpu".
  virtual const std::string& name() const noexcept = 0;
  virtual const Metadata& metadata() const noexcept = 0;

  // `names`: of the outputs wanted, in this order; none: all, in the model's. Waits for a free request
  // where too many calls are under way. An image with NaN or infinity gets NaN answers.
  // Code::argument for an output that is not there, Code::shape for images that the model does not
  // take, Code::device where it fails.
  virtual Result<Tensors> infer_all(const ImageBatch& images,
                                    const std::vector<std::string>& names) const = 0;

  // The first output alone.
  REST_DEPLOY_API Result<Logits> infer(const ImageBatch& images) const;
};

// (batch, 3, height, width)
using Shape = std::array<std::size_t, 4>;

struct RunnerOptions {
  // Of one call on a CPU; 0: all cores.
  int threads = 0;
  // Calls under way at a time; each has tensors of its own. 1 to 64.
  int requests = 8;
  // OpenVINO: shapes that get a compilation of their own beside the one for any shape. Faster for
  // them, and the weights are there once more for each. A batch that threads share evenly runs in
  // as many parts side by side as both divide by.
  std::vector<Shape> compiled_shapes;
  // The same for so many images of the card's own size.
  std::vector<std::size_t> fixed_batches;
  // TensorRT: number of the GPU.
  int device = 0;
  // An engine that was not seen on this machine runs its own two images first and is refused where
  // it answers otherwise than where it was built; what passed is remembered in FILE.cache.
  bool selftest = true;
};

// By path of FILE.onnx (OpenVINO) or FILE.engine (TensorRT), with its sidecar FILE.onnx.json beside
// it, whose hashes have to be the file's. Code::artifact for what is damaged, foreign or built for
// elsewhere, Code::missing for a backend that this library was built without or a device that is not
// here, Code::selftest for an engine that answers otherwise here, Code::argument for options out of
// range.
REST_DEPLOY_API Result<std::unique_ptr<Runner>> open_runner(const std::string& path,
                                                            const RunnerOptions& options = {});

// Code::shape unless batch > 0, height and width >= 32 and there are either floats or pixels.
REST_DEPLOY_API Status check_images(const ImageBatch& images);

// The same, and that they are what the model takes.
REST_DEPLOY_API Status check_images(const ImageBatch& images, const Metadata& metadata);

// Backends that this library was built with, e.g. "openvino".
REST_DEPLOY_API std::vector<std::string> built_backends();

}  // namespace rest_deploy

#endif
