// A loaded model: normalized images in, logits out. The contract of runtime/session.py.
//
// Ownership: a Runner owns its engine; what it is given and what it returns belong to the caller.
// Threads: every const function may be called from any number of threads at once.
// Units: pixels, float32, batches of whole images (N, 3, H, W) without padding, RGB planes.
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
#include "rest_deploy/status.h"

namespace rest_deploy {

// What the model file says of itself, from its sidecar.
struct Metadata {
  std::string name;     // of its card, e.g. "rest_lite"
  std::string variant;  // "lite"
  int num_classes = 0;  // 0: no classifier, `infer` returns embeddings
  std::vector<std::string> labels;  // one a class
  std::string input_name;
  std::string output_name;
  std::string sha256;  // of the model file, hexadecimal
  Preprocessing preprocessing;
};

// Not owned: batch x 3 x height x width floats that outlive the call.
struct ImageBatch {
  const float* data = nullptr;
  std::size_t batch = 0;
  std::size_t height = 0;
  std::size_t width = 0;

  std::size_t size() const noexcept { return batch * 3 * height * width; }
};

// batch x classes float32, row by row.
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

  // Waits for a free request where too many calls are under way. An image with NaN or infinity gets
  // NaN logits. Code::shape for what the model does not take, Code::device where it fails.
  virtual Result<Logits> infer(const ImageBatch& images) const = 0;
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
};

// By path of FILE.onnx (OpenVINO) or FILE.engine (TensorRT), with its sidecar FILE.onnx.json beside
// it, whose hashes have to be the file's. Code::artifact for what is damaged, foreign or built for
// elsewhere, Code::missing for a backend that this library was built without or a device that is not
// here, Code::argument for options out of range.
REST_DEPLOY_API Result<std::unique_ptr<Runner>> open_runner(const std::string& path,
                                                            const RunnerOptions& options = {});

// Code::shape unless batch > 0, height and width >= 32 and there is data.
REST_DEPLOY_API Status check_images(const ImageBatch& images);

// Backends that this library was built with, e.g. "openvino".
REST_DEPLOY_API std::vector<std::string> built_backends();

}  // namespace rest_deploy

#endif
