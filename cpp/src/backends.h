// What a backend offers to open_runner.
#ifndef REST_DEPLOY_SRC_BACKENDS_H
#define REST_DEPLOY_SRC_BACKENDS_H

#include <memory>
#include <string>

#include "rest_deploy/runner.h"
#include "sidecar.h"

namespace rest_deploy {

// Each is there only where the library is built with it.
Result<std::unique_ptr<Runner>> open_openvino(const std::string& path, const Sidecar& sidecar,
                                              const RunnerOptions& options);
Result<std::unique_ptr<Runner>> open_tensorrt(const std::string& path, const Sidecar& sidecar,
                                              const RunnerOptions& options);

// Room for the outputs of those names, all for none, for that batch. Code::argument for a name that
// is not there or comes twice.
Result<Tensors> room_for(const Metadata& metadata, const std::vector<std::string>& names,
                         const ImageBatch& images);

// (batch, 3, height, width) as the model's input has it.
Shape input_shape(InputKind kind, const Shape& images);

// "(2, 64, 56, 56)"
std::string text_of(const std::vector<std::size_t>& shape);

// NaN answers for images with a value that is not finite. Engines make numbers of them: ReLU and
// quantization turn NaN into 0.
void poison(const ImageBatch& images, Tensors& tensors);

}  // namespace rest_deploy

#endif
