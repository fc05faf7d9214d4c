// Logits -> labels.
#ifndef REST_DEPLOY_CLASSIFY_H
#define REST_DEPLOY_CLASSIFY_H

#include <string>
#include <vector>

#include "rest_deploy/runner.h"

namespace rest_deploy {

// One class for one image; `probability` is the softmax of the logits.
struct Prediction {
  int index = 0;
  std::string label;
  double probability = 0.0;
};

// The `top` most probable of `metadata.num_classes` logits, best first, equal ones by index.
// Code::artifact for NaN or infinite logits and for a model without a classifier.
REST_DEPLOY_API Result<std::vector<Prediction>> best(const float* logits, const Metadata& metadata,
                                                     int top = 5);

// Decoded images of any size in one call of the engine. Code::image, and what `infer` says.
REST_DEPLOY_API Result<std::vector<std::vector<Prediction>>> classify(
    const Runner& runner, const std::vector<Image>& images, int top = 5);

}  // namespace rest_deploy

#endif
