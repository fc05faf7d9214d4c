// Parts of image decoding. Each returns the pixels as stored and the orientation beside them.
#ifndef REST_DEPLOY_SRC_DECODE_H
#define REST_DEPLOY_SRC_DECODE_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "rest_deploy/preprocess.h"

namespace rest_deploy {

struct Stored {
  Image image;
  int orientation = 1;  // EXIF: 1 upright, 2..8 mirrored or turned
};

Result<Stored> decode_jpeg(const std::uint8_t* bytes, std::size_t size, std::int64_t max_pixels);
Result<Stored> decode_png(const std::uint8_t* bytes, std::size_t size, std::int64_t max_pixels);

// Code::image or Code::too_large unless width x height is within the limits.
Status check_dimensions(std::int64_t width, std::int64_t height, std::int64_t max_pixels);

// Of an EXIF block (after "Exif\0\0"): the orientation, nothing where it has none; Code::image for
// what is no TIFF header.
Result<std::optional<int>> exif_orientation(std::string_view exif);

// Of an XMP packet, where there is one.
std::optional<int> xmp_orientation(std::string_view xmp);

// Mirrored and turned to stand upright; other values than 2..8 change nothing.
Image upright(Image image, int orientation);

}  // namespace rest_deploy

#endif
