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

// NaN logits for images with a value that is not finite. Engines make numbers of them: ReLU and
// quantization turn NaN into 0.
void poison(const ImageBatch& images, Logits& logits);

}  // namespace rest_deploy

#endif
