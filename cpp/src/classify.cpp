#include "rest_deploy/classify.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace rest_deploy {
namespace {

// One output for those images, all of it finite.
Result<Tensor> answer(const Runner& runner, const std::vector<Image>& images,
                      const Output& output) {
  const Metadata& metadata = runner.metadata();
  if (images.empty()) return Tensor{output.name, {0, output.channels}, {}};
  Images batch;
  for (const Image& image : images) {
    if (Status status = append(image, metadata, batch); !status.ok()) return status;
  }
  Result<Tensors> found = runner.infer_all(batch.view(), {output.name});
  if (!found) return found.status();
  return std::move(found.value().front());
}

Status not_finite(const Metadata& metadata, const char* what) {
  return {Code::artifact, metadata.name + " returned NaN or infinite " + what,
          "rest-deploy verify shows where it departs from the reference"};
}

bool finite(const float* values, std::size_t count) {
  return std::all_of(values, values + count, [](float v) { return std::isfinite(v); });
}

}  // namespace

Status check_classifies(const Metadata& metadata) {
  if (metadata.scores() != nullptr && metadata.num_classes > 0) return {};
  const bool embeds = metadata.find(OutputKind::embedding) != nullptr;
  return {Code::artifact,
          metadata.name + " gives no classes, but " + metadata.gives() +
              (embeds ? ": a vector to compare images by" : ": maps for a detector's or "
                                                            "segmenter's head"),
          "rest-deploy export --output logits, of a checkpoint with a head, makes one that classifies"};
}

Status check_embeds(const Metadata& metadata) {
  if (metadata.find(OutputKind::embedding) != nullptr) return {};
  return {Code::artifact, metadata.name + " gives no embedding, but " + metadata.gives(),
          "rest-deploy export --output embedding"};
}

Result<std::vector<Prediction>> best(const float* values, const Metadata& metadata, int top,
                                     OutputKind kind) {
  if (Status status = check_classifies(metadata); !status.ok()) return status;
  const std::size_t classes = static_cast<std::size_t>(metadata.num_classes);
  if (top < 1) {
    return Status(Code::argument, "top is " + std::to_string(top) + "; expected at least 1");
  }
  if (kind != OutputKind::logits && kind != OutputKind::probabilities) {
    return Status(Code::argument, std::string("classes are not read from ") + name_of(kind) +
                                      "; expected logits or probabilities");
  }
  if (!finite(values, classes)) return not_finite(metadata, name_of(kind));
  std::vector<double> shares(values, values + classes);
  if (kind == OutputKind::logits) {
    const double largest = *std::max_element(shares.begin(), shares.end());
    for (double& share : shares) share = std::exp(share - largest);
    const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (double& share : shares) share /= total;
  }
  std::vector<int> order(classes);
  std::iota(order.begin(), order.end(), 0);
  const std::size_t count = std::min(classes, static_cast<std::size_t>(top));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](int a, int b) {
                      const float x = values[a], y = values[b];
                      return x > y || (x == y && a < b);
                    });
  std::vector<Prediction> found;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t index = static_cast<std::size_t>(order[i]);
    found.push_back({order[i], metadata.labels[index], shares[index]});
  }
  return found;
}

Status append(const Image& image, const Metadata& metadata, Images& images) {
  const Preprocessing& how = metadata.preprocessing;
  const Result<Image> pixels = to_pixels(image, how);
  if (!pixels) return pixels.status();
  const std::vector<std::uint8_t>& rgb = pixels.value().rgb;
  if (metadata.input == InputKind::pixels) {
    images.pixels.insert(images.pixels.end(), rgb.begin(), rgb.end());
  } else {
    images.data.resize(images.data.size() + rgb.size());
    normalize(pixels.value(), how, images.data.data() + images.data.size() - rgb.size());
  }
  ++images.batch;
  images.height = images.width = static_cast<std::size_t>(how.crop);
  return {};
}

Result<std::vector<std::vector<Prediction>>> classify(const Runner& runner,
                                                      const std::vector<Image>& images, int top) {
  const Metadata& metadata = runner.metadata();
  if (Status status = check_classifies(metadata); !status.ok()) return status;
  const Output& output = *metadata.scores();
  const Result<Tensor> found = answer(runner, images, output);
  if (!found) return found.status();
  std::vector<std::vector<Prediction>> answers;
  for (std::size_t i = 0; i < images.size(); ++i) {
    Result<std::vector<Prediction>> row = best(found.value().row(i), metadata, top, output.kind);
    if (!row) return row.status();
    answers.push_back(std::move(row.value()));
  }
  return answers;
}

Result<Tensor> embed(const Runner& runner, const std::vector<Image>& images) {
  const Metadata& metadata = runner.metadata();
  if (Status status = check_embeds(metadata); !status.ok()) return status;
  Result<Tensor> found = answer(runner, images, *metadata.find(OutputKind::embedding));
  if (found && !finite(found.value().values.data(), found.value().values.size())) {
    return not_finite(metadata, "embeddings");
  }
  return found;
}

}  // namespace rest_deploy
