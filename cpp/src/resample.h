// Pillow's antialiased resize in fixed point.
#ifndef REST_DEPLOY_SRC_RESAMPLE_H
#define REST_DEPLOY_SRC_RESAMPLE_H

#include <vector>

#include "rest_deploy/preprocess.h"

namespace rest_deploy {

// A part of the resized image, pixels.
struct Window {
  int left = 0;
  int top = 0;
  int width = 0;
  int height = 0;
};

// Weights of the source pixels of each target pixel, in units of 1 / 2^22.
struct Taps {
  struct Span {
    int first;  // source pixel of the first weight
    int count;
  };
  std::vector<Span> spans;    // one a target pixel
  std::vector<int> weights;   // `stride` a target pixel, `count` of them used
  int stride = 0;

  const int* of(int target) const {
    return weights.data() + static_cast<std::size_t>(target) * static_cast<std::size_t>(stride);
  }
};

// For target pixels `first` .. `first + count - 1` of an axis resized from `source` to `target`.
Taps make_taps(int source, int target, int first, int count, Interpolation kind);

// `window` of `image` resized to width x height. Only what the window needs is computed; its pixels
// are those of the whole.
Image resample(const Image& image, int width, int height, const Window& window, Interpolation kind);

}  // namespace rest_deploy

#endif
