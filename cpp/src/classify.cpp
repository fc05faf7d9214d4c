#include "rest_deploy/classify.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace rest_deploy {

Result<std::vector<Prediction>> best(const float* logits, const Metadata& metadata, int top) {
  const std::size_t classes = static_cast<std::size_t>(metadata.num_classes);
  if (classes == 0) {
    return Status(Code::artifact, metadata.name + " has no classifier: it returns embeddings");
  }
  if (top < 1) {
    return Status(Code::argument, "top is " + std::to_string(top) + "; expected at least 1");
  }
  if (!std::all_of(logits, logits + classes, [](float v) { return std::isfinite(v); })) {
    return Status(Code::artifact, metadata.name + " returned NaN or infinite logits",
                  "rest-deploy verify shows where it departs from the reference");
  }
  const double largest = *std::max_element(logits, logits + classes);
  std::vector<double> shares(classes);
  for (std::size_t i = 0; i < classes; ++i) shares[i] = std::exp(double{logits[i]} - largest);
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int> order(classes);
  std::iota(order.begin(), order.end(), 0);
  const std::size_t count = std::min(classes, static_cast<std::size_t>(top));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](int a, int b) {
                      const float x = logits[a], y = logits[b];
                      return x > y || (x == y && a < b);
                    });
  std::vector<Prediction> found;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t index = static_cast<std::size_t>(order[i]);
    found.push_back({order[i], metadata.labels[index], shares[index] / total});
  }
  return found;
}

Result<std::vector<std::vector<Prediction>>> classify(const Runner& runner,
                                                      const std::vector<Image>& images, int top) {
  std::vector<std::vector<Prediction>> answers;
  if (images.empty()) return answers;
  const Preprocessing& how = runner.metadata().preprocessing;
  const std::size_t side = static_cast<std::size_t>(how.crop);
  std::vector<float> batch;
  batch.reserve(images.size() * 3 * side * side);
  for (const Image& image : images) {
    const Result<std::vector<float>> tensor = to_tensor(image, how);
    if (!tensor) return tensor.status();
    batch.insert(batch.end(), tensor.value().begin(), tensor.value().end());
  }
  const Result<Logits> logits = runner.infer({batch.data(), images.size(), side, side});
  if (!logits) return logits.status();
  for (std::size_t i = 0; i < images.size(); ++i) {
    Result<std::vector<Prediction>> row = best(logits.value().row(i), runner.metadata(), top);
    if (!row) return row.status();
    answers.push_back(std::move(row.value()));
  }
  return answers;
}

}  // namespace rest_deploy
