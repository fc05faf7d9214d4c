// Image -> tensor, bit for bit what rest_deploy/preprocess.py computes with Pillow 13.
#ifndef REST_DEPLOY_PREPROCESS_H
#define REST_DEPLOY_PREPROCESS_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "rest_deploy/api.h"
#include "rest_deploy/status.h"

namespace rest_deploy {

// Smallest height and width of an image and of a model input, pixels.
inline constexpr int kSmallestSide = 32;

// Larger images are refused before a pixel of them is decoded.
inline constexpr std::int64_t kMaxPixels = 89'478'485;

enum class Interpolation { bicubic, bilinear };

// The shorter side is resized to `resize` pixels (antialiased), the centre `crop` x `crop` is taken,
// values 0..1 are normalized by `mean` and `std` (RGB order).
struct Preprocessing {
  int resize = 256;
  int crop = 224;
  Interpolation interpolation = Interpolation::bicubic;
  std::array<double, 3> mean{};
  std::array<double, 3> std{};
};

// Pixels: height x width x 3 bytes, RGB, rows without padding.
struct Image {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
};

// Height and width of a tensor in pixels; zeros: the card's square.
struct OutputSize {
  int height = 0;
  int width = 0;
};

// JPEG or PNG -> upright RGB. EXIF orientation is applied, alpha dropped, grey and palette images
// are expanded, 16 bit keep their high byte, CMYK is converted as Pillow does.
// `max_pixels` may lower kMaxPixels. Code::image for what cannot be decoded or is below 32x32,
// Code::too_large for what has more pixels than that.
REST_DEPLOY_API Result<Image> decode_image(const std::uint8_t* bytes, std::size_t size,
                                           std::int64_t max_pixels = kMaxPixels);

// The same from a file.
REST_DEPLOY_API Result<Image> load_image(const std::string& path,
                                         std::int64_t max_pixels = kMaxPixels);

// Resized and cropped: crop x crop, or `size`, which is cut from as much of the image as it covers.
REST_DEPLOY_API Result<Image> to_pixels(const Image& image, const Preprocessing& how,
                                        OutputSize size = {});

// (value / 255 - mean) / std into (3, height, width) float32; `out` has room for them.
REST_DEPLOY_API void normalize(const Image& pixels, const Preprocessing& how, float* out);

// All of it: (3, height, width) float32.
REST_DEPLOY_API Result<std::vector<float>> to_tensor(const Image& image, const Preprocessing& how,
                                                     OutputSize size = {});

}  // namespace rest_deploy

#endif
