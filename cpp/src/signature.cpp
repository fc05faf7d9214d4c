#include "rest_deploy/signature.h"

#include "rest_deploy/runner.h"

namespace rest_deploy {

std::vector<std::size_t> shape_of(const Output& output, std::size_t batch, std::size_t height,
                                  std::size_t width) {
  if (output.stride == 0) return {batch, output.channels};
  const auto cells = [&](std::size_t side) { return (side + output.stride - 1) / output.stride; };
  return {batch, output.channels, cells(height), cells(width)};
}

const char* name_of(OutputKind kind) noexcept {
  switch (kind) {
    case OutputKind::logits:
      return "logits";
    case OutputKind::probabilities:
      return "probabilities";
    case OutputKind::embedding:
      return "embedding";
    case OutputKind::features:
      break;
  }
  return "features";
}

const Output* Metadata::find(OutputKind kind) const noexcept {
  for (const Output& output : outputs) {
    if (output.kind == kind) return &output;
  }
  return nullptr;
}

const Output* Metadata::find(const std::string& output_name) const noexcept {
  for (const Output& output : outputs) {
    if (output.name == output_name) return &output;
  }
  return nullptr;
}

const Output* Metadata::scores() const noexcept {
  const Output* logits = find(OutputKind::logits);
  return logits != nullptr ? logits : find(OutputKind::probabilities);
}

std::string Metadata::gives() const {
  std::string names;
  for (const Output& output : outputs) names += (names.empty() ? "" : ", ") + output.name;
  return names;
}

}  // namespace rest_deploy
