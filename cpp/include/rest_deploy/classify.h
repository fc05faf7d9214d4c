// Class scores -> labels.
#ifndef REST_DEPLOY_CLASSIFY_H
#define REST_DEPLOY_CLASSIFY_H

#include <string>
#include <vector>

#include "rest_deploy/runner.h"

namespace rest_deploy {

// One class for one image; `probability`: the softmax of the logits, or the model's own.
struct Prediction {
  int index = 0;
  std::string label;
  double probability = 0.0;
};

// The `top` most probable of `metadata.num_classes` classes, best first, equal ones by index. values:
// of one image, logits or, with that kind, probabilities.
// Code::artifact for NaN or infinite values, and for a model that gives no classes.
REST_DEPLOY_API Result<std::vector<Prediction>> best(const float* values, const Metadata& metadata,
                                                     int top = 5,
                                                     OutputKind kind = OutputKind::logits);

// Decoded images of any size in one call of the engine. Code::image, and what `best` and `infer_all`
// say.
REST_DEPLOY_API Result<std::vector<std::vector<Prediction>>> classify(
    const Runner& runner, const std::vector<Image>& images, int top = 5);

// Decoded images of any size -> (N, C) of the model's embedding. Code::artifact for a model that
// gives none, and for NaN or infinite values.
REST_DEPLOY_API Result<Tensor> embed(const Runner& runner, const std::vector<Image>& images);

// One more image for a batch, resized to the card's square, as the model takes it: normalized or
// pixels. Code::image.
REST_DEPLOY_API Status append(const Image& image, const Metadata& metadata, Images& images);

// Code::artifact, saying what the model does give, for one without classes or without an embedding.
REST_DEPLOY_API Status check_classifies(const Metadata& metadata);
REST_DEPLOY_API Status check_embeds(const Metadata& metadata);

}  // namespace rest_deploy

#endif
