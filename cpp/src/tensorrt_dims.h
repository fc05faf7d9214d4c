// TensorRT's shapes and element types beside ours.
#ifndef REST_DEPLOY_SRC_TENSORRT_DIMS_H
#define REST_DEPLOY_SRC_TENSORRT_DIMS_H

#include <NvInferRuntime.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "rest_deploy/runner.h"

namespace rest_deploy {

using nvinfer1::DataType;
using nvinfer1::Dims;

inline std::size_t element_bytes(DataType type) {
  if (type == DataType::kFLOAT) return 4;
  if (type == DataType::kHALF) return 2;
  if (type == DataType::kUINT8) return 1;
  throw std::runtime_error("a tensor of the engine is neither float32 nor float16 nor uint8");
}

inline bool is_float(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF; }

inline Dims dims_of(const Shape& shape) {
  Dims dims{};
  dims.nbDims = static_cast<int>(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) {
    dims.d[i] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(shape[i]);
  }
  return dims;
}

inline std::string text(const Dims& dims) {
  std::string out;
  for (int i = 0; i < dims.nbDims; ++i) out += (i == 0 ? "" : "x") + std::to_string(dims.d[i]);
  return out;
}

inline bool equal(const Dims& dims, const std::vector<std::size_t>& shape) {
  if (static_cast<std::size_t>(dims.nbDims) != shape.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (static_cast<std::size_t>(dims.d[i]) != shape[i]) return false;
  }
  return true;
}

inline bool within(const Dims& low, const Dims& shape, const Dims& high) {
  for (int i = 0; i < shape.nbDims; ++i) {
    if (shape.d[i] < low.d[i] || shape.d[i] > high.d[i]) return false;
  }
  return low.nbDims == shape.nbDims && high.nbDims == shape.nbDims;
}

inline double volume(const Dims& dims) {
  double product = 1;
  for (int i = 0; i < dims.nbDims; ++i) product *= static_cast<double>(dims.d[i]);
  return product;
}

}  // namespace rest_deploy

#endif
