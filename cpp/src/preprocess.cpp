#include "rest_deploy/preprocess.h"

#include <cmath>

#include "resample.h"

namespace rest_deploy {
namespace {

std::string by(int width, int height) {
  return std::to_string(width) + "x" + std::to_string(height);
}

// Half to even, as Python rounds.
int half_to_even(double value) { return static_cast<int>(std::nearbyint(value)); }

Status check(const Image& image, const Preprocessing& how, OutputSize out) {
  const std::size_t bytes =
      static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height) * 3;
  if (image.width < kSmallestSide || image.height < kSmallestSide || image.rgb.size() != bytes) {
    return {Code::image, "got an image of " + by(image.width, image.height) + " with " +
                             std::to_string(image.rgb.size()) +
                             " bytes; expected height x width x 3 of them and at least " +
                             by(kSmallestSide, kSmallestSide)};
  }
  if (how.crop < kSmallestSide || how.resize < how.crop || out.height < kSmallestSide ||
      out.width < kSmallestSide) {
    return {Code::argument, "resize " + std::to_string(how.resize) + ", crop " +
                                std::to_string(how.crop) + ", size " +
                                by(out.width, out.height) + "; expected " +
                                std::to_string(kSmallestSide) + " <= crop <= resize"};
  }
  return {};
}

}  // namespace

Result<Image> to_pixels(const Image& image, const Preprocessing& how, OutputSize size) {
  const OutputSize out = size.height == 0 && size.width == 0 ? OutputSize{how.crop, how.crop} : size;
  if (Status status = check(image, how, out); !status.ok()) return status;
  const double cover = how.resize;
  const std::int64_t cover_height = half_to_even(cover * out.height / how.crop);
  const std::int64_t cover_width = half_to_even(cover * out.width / how.crop);
  // The longer side is floored: torchvision's arithmetic.
  double width, height;
  if (cover_height * image.width >= cover_width * image.height) {
    width = std::floor(static_cast<double>(cover_height * image.width) / image.height);
    height = static_cast<double>(cover_height);
  } else {
    width = static_cast<double>(cover_width);
    height = std::floor(static_cast<double>(cover_width * image.height) / image.width);
  }
  if (width * height > static_cast<double>(kMaxPixels)) {
    return Status(Code::too_large,
                  "an image of " + by(image.width, image.height) + " becomes " +
                      std::to_string(static_cast<std::int64_t>(width)) + "x" +
                      std::to_string(static_cast<std::int64_t>(height)) + "; expected at most " +
                      std::to_string(kMaxPixels) + " pixels");
  }
  const Window window{half_to_even((width - out.width) / 2.0),
                      half_to_even((height - out.height) / 2.0), out.width, out.height};
  return resample(image, static_cast<int>(width), static_cast<int>(height), window,
                  how.interpolation);
}

void normalize(const Image& pixels, const Preprocessing& how, float* out) {
  const std::size_t plane =
      static_cast<std::size_t>(pixels.width) * static_cast<std::size_t>(pixels.height);
  for (std::size_t channel = 0; channel < 3; ++channel) {
    const float mean = static_cast<float>(how.mean[channel]);
    const float deviation = static_cast<float>(how.std[channel]);
    // 256 values are all there are. Divided, not multiplied by a reciprocal: other bits.
    std::array<float, 256> table;
    for (std::size_t value = 0; value < table.size(); ++value) {
      table[value] = (static_cast<float>(value) / 255.0F - mean) / deviation;
    }
    float* target = out + plane * channel;
    const std::uint8_t* source = pixels.rgb.data() + channel;
    for (std::size_t i = 0; i < plane; ++i) target[i] = table[source[3 * i]];
  }
}

Result<std::vector<float>> to_tensor(const Image& image, const Preprocessing& how,
                                     OutputSize size) {
  Result<Image> pixels = to_pixels(image, how, size);
  if (!pixels) return pixels.status();
  std::vector<float> tensor(pixels.value().rgb.size());
  normalize(pixels.value(), how, tensor.data());
  return tensor;
}

}  // namespace rest_deploy
