// May this TensorRT engine be loaded here? Decided from its sidecar, before a byte of it is
// deserialized: a serialized engine is executable code (rest_deploy/runtime/loading.py).
#ifndef REST_DEPLOY_SRC_ENGINE_FIT_H
#define REST_DEPLOY_SRC_ENGINE_FIT_H

#include <string>

#include "sidecar.h"

namespace rest_deploy {

// This library and this machine, as far as engines care.
struct Here {
  std::string flavour;  // that this library was built with
  std::string version;  // of the loaded library, all four numbers
  std::string sm;       // compute capability of the GPU: "86"; "" without one
  int cuda_major = 0;   // newest CUDA that the driver runs
  int cuda_minor = 0;
};

// Code::artifact with both sides and the command that builds the engine again, Code::missing for
// what this machine or this library lacks. `sidecar.fit` is there.
Status check_fit(const std::string& path, const Sidecar& sidecar, const Here& here);

}  // namespace rest_deploy

#endif
