// What a model takes and gives: rest_deploy/signature.py.
#ifndef REST_DEPLOY_SIGNATURE_H
#define REST_DEPLOY_SIGNATURE_H

#include <cstddef>
#include <string>
#include <vector>

#include "rest_deploy/api.h"

namespace rest_deploy {

// logits: (N, classes); probabilities: their softmax; embedding: (N, C), the pooled vector before the
// head; features: a map (N, C, H/stride, W/stride) of one stage.
enum class OutputKind { logits, probabilities, embedding, features };

// normalized: (N, 3, H, W) float32; pixels: (N, H, W, 3) uint8, RGB, normalized in the graph.
enum class InputKind { normalized, pixels };

struct Output {
  std::string name;  // "logits", "probabilities", "embedding", "c2" to "c5"
  OutputKind kind = OutputKind::logits;
  std::size_t channels = 0;  // classes, or C
  std::size_t stride = 0;    // of a map, pixels a cell; 0 for a vector
  bool unit_length = false;  // an embedding of L2 norm 1
};

// For images of that size: (batch, channels), of a map (batch, channels, ceil(height / stride),
// ceil(width / stride)).
REST_DEPLOY_API std::vector<std::size_t> shape_of(const Output& output, std::size_t batch,
                                                  std::size_t height, std::size_t width);

// "logits" to "features", as in a sidecar.
REST_DEPLOY_API const char* name_of(OutputKind kind) noexcept;

}  // namespace rest_deploy

#endif
