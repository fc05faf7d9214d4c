#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>

namespace rest_deploy {
namespace {

// Weights have 22 fractional bits: 8 bits of a pixel, 22 of a weight and 2 for sums beyond 255 (a
// cubic filter has negative lobes) fill a 32-bit accumulator.
constexpr int kBits = 22;
constexpr std::int32_t kHalf = 1 << (kBits - 1);

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double linear(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

std::uint8_t to_byte(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255));
}

Image blank(int width, int height) {
  Image image{width, height, {}};
  image.rgb.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
  return image;
}

std::size_t row_bytes(const Image& image) { return static_cast<std::size_t>(image.width) * 3; }

// Columns of `image` -> columns of the taps, rows as they are.
Image across(const Image& image, const Taps& taps) {
  Image out = blank(static_cast<int>(taps.spans.size()), image.height);
  for (int y = 0; y < image.height; ++y) {
    const std::uint8_t* row = image.rgb.data() + row_bytes(image) * static_cast<std::size_t>(y);
    std::uint8_t* target = out.rgb.data() + row_bytes(out) * static_cast<std::size_t>(y);
    for (int x = 0; x < out.width; ++x) {
      const Taps::Span span = taps.spans[static_cast<std::size_t>(x)];
      const int* weights = taps.of(x);
      const std::uint8_t* source = row + static_cast<std::size_t>(span.first) * 3;
      std::int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (int k = 0; k < span.count; ++k) {
        red += source[3 * k] * weights[k];
        green += source[3 * k + 1] * weights[k];
        blue += source[3 * k + 2] * weights[k];
      }
      *target++ = to_byte(red);
      *target++ = to_byte(green);
      *target++ = to_byte(blue);
    }
  }
  return out;
}

// Rows of `image` -> rows of the taps, columns as they are.
Image down(const Image& image, const Taps& taps) {
  Image out = blank(image.width, static_cast<int>(taps.spans.size()));
  const std::size_t length = row_bytes(image);
  std::vector<std::int32_t> sums(length);
  for (int y = 0; y < out.height; ++y) {
    const Taps::Span span = taps.spans[static_cast<std::size_t>(y)];
    const int* weights = taps.of(y);
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int k = 0; k < span.count; ++k) {
      const std::uint8_t* row =
          image.rgb.data() + length * static_cast<std::size_t>(span.first + k);
      const std::int32_t weight = weights[k];
      for (std::size_t i = 0; i < length; ++i) sums[i] += row[i] * weight;
    }
    std::uint8_t* target = out.rgb.data() + length * static_cast<std::size_t>(y);
    for (std::size_t i = 0; i < length; ++i) target[i] = to_byte(sums[i]);
  }
  return out;
}

// The source pixels that the taps read: first and one past the last.
std::pair<int, int> extent(const Taps& taps) {
  int low = taps.spans.front().first, high = low;
  for (const Taps::Span& span : taps.spans) {
    low = std::min(low, span.first);
    high = std::max(high, span.first + span.count);
  }
  return {low, high};
}

// Spans counted from source pixel `low` on.
void shift(Taps& taps, int low) {
  for (Taps::Span& span : taps.spans) span.first -= low;
}

Image cut(const Image& image, int left, int top, int width, int height) {
  Image out = blank(width, height);
  const std::size_t length = row_bytes(out);
  for (int y = 0; y < height; ++y) {
    const std::uint8_t* row = image.rgb.data() +
                              row_bytes(image) * static_cast<std::size_t>(top + y) +
                              static_cast<std::size_t>(left) * 3;
    std::copy_n(row, length, out.rgb.data() + length * static_cast<std::size_t>(y));
  }
  return out;
}

}  // namespace

Taps make_taps(int source, int target, int first, int count, Interpolation kind) {
  const bool bicubic = kind == Interpolation::bicubic;
  const double scale = static_cast<double>(source) / target;
  const double filter_scale = std::max(scale, 1.0);  // as wide as the reduction: antialiased
  const double support = (bicubic ? 2.0 : 1.0) * filter_scale;
  const double step = 1.0 / filter_scale;

  Taps taps;
  taps.stride = static_cast<int>(std::ceil(support)) * 2 + 1;
  taps.spans.reserve(static_cast<std::size_t>(count));
  taps.weights.assign(static_cast<std::size_t>(count) * static_cast<std::size_t>(taps.stride), 0);
  std::vector<double> exact(static_cast<std::size_t>(taps.stride));
  for (int index = 0; index < count; ++index) {
    const double center = (first + index + 0.5) * scale;
    const int low = std::max(static_cast<int>(center - support + 0.5), 0);
    const int high = std::min(static_cast<int>(center + support + 0.5), source);
    double total = 0.0;
    for (int x = low; x < high; ++x) {
      const double at = (x - center + 0.5) * step;
      const double weight = bicubic ? cubic(at) : linear(at);
      exact[static_cast<std::size_t>(x - low)] = weight;
      total += weight;
    }
    int* weights = taps.weights.data() + static_cast<std::size_t>(index) *
                                             static_cast<std::size_t>(taps.stride);
    for (int k = 0; k < high - low; ++k) {
      double weight = exact[static_cast<std::size_t>(k)];
      if (total != 0.0) weight /= total;
      weights[k] = static_cast<int>(weight * (1 << kBits) + (weight < 0 ? -0.5 : 0.5));
    }
    taps.spans.push_back({low, high - low});
  }
  return taps;
}

Image resample(const Image& image, int width, int height, const Window& window,
               Interpolation kind) {
  // Between the two passes are 8 bits, so their order shows. Pillow 13 takes the vertical one first
  // where that makes the image much smaller.
  const bool vertical_first =
      image.height > height && image.height - height > 2 * (image.width - width);
  const bool resize_width = image.width != width, resize_height = image.height != height;

  Taps columns, rows;
  int left = window.left, right = window.left + window.width;
  int top = window.top, bottom = window.top + window.height;
  if (resize_width) {
    columns = make_taps(image.width, width, window.left, window.width, kind);
    std::tie(left, right) = extent(columns);
    shift(columns, left);
  }
  if (resize_height) {
    rows = make_taps(image.height, height, window.top, window.height, kind);
    std::tie(top, bottom) = extent(rows);
    shift(rows, top);
  }
  Image part = cut(image, left, top, right - left, bottom - top);
  if (vertical_first && resize_height) part = down(part, rows);
  if (resize_width) part = across(part, columns);
  if (!vertical_first && resize_height) part = down(part, rows);
  return part;
}

}  // namespace rest_deploy
