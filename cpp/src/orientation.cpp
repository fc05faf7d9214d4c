// Where an image's upright side is: EXIF, XMP, and the turn itself.
#include <cstring>

#include "decode.h"

namespace rest_deploy {
namespace {

constexpr unsigned kOrientation = 0x0112;

// Reads numbers of a TIFF structure; out of bounds gives nothing.
class Tiff {
 public:
  Tiff(std::string_view bytes, bool little) : bytes_(bytes), little_(little) {}

  std::optional<std::uint32_t> number(std::size_t at, std::size_t width) const {
    if (at > bytes_.size() || bytes_.size() - at < width) return std::nullopt;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t place = little_ ? width - 1 - i : i;
      value = value << 8 | static_cast<std::uint8_t>(bytes_[at + place]);
    }
    return value;
  }

 private:
  std::string_view bytes_;
  bool little_;
};

// Bytes of a field type that can hold an orientation: BYTE, SHORT, LONG; 0 for others.
std::size_t width_of(std::uint32_t type) {
  switch (type) {
    case 1:
      return 1;
    case 3:
      return 2;
    case 4:
      return 4;
    default:
      return 0;
  }
}

}  // namespace

Result<std::optional<int>> exif_orientation(std::string_view exif) {
  using namespace std::string_view_literals;
  for (int i = 0; i < 2 && exif.substr(0, 6) == "Exif\0\0"sv; ++i) exif.remove_prefix(6);
  if (exif.empty()) return std::optional<int>();
  const std::string_view head = exif.substr(0, 4);
  const bool little = head == "II\x2a\0"sv || head == "II\0\x2a"sv;
  if (exif.size() < 8 || (!little && head != "MM\0\x2a"sv && head != "MM\x2a\0"sv)) {
    return Status(Code::image, "its EXIF block is damaged");
  }
  const Tiff tiff(exif, little);
  const std::size_t directory = *tiff.number(4, 4);
  std::optional<int> found;
  const std::uint32_t entries = tiff.number(directory, 2).value_or(0);
  for (std::uint32_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + std::size_t{12} * i;
    const auto tag = tiff.number(entry, 2), type = tiff.number(entry + 2, 2);
    const auto count = tiff.number(entry + 4, 4);
    if (!tiff.number(entry + 8, 4)) break;  // the directory ends early
    const std::size_t width = width_of(*type);
    if (*tag != kOrientation || *count != 1 || width == 0) continue;
    const std::uint32_t value = *tiff.number(entry + 8, width);
    found = value <= 8 ? static_cast<int>(value) : 1;
  }
  return found;
}

std::optional<int> xmp_orientation(std::string_view xmp) {
  constexpr std::string_view name = "tiff:Orientation";
  for (std::size_t at = xmp.find(name); at != std::string_view::npos; at = xmp.find(name, at + 1)) {
    std::string_view rest = xmp.substr(at + name.size());
    if (rest.substr(0, 2) == "=\"") {
      rest.remove_prefix(2);
    } else if (rest.substr(0, 1) == ">") {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return std::nullopt;
}

Image upright(Image image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  // By the EXIF standard: 2..4 mirror axes, 5..8 also exchange them.
  const bool exchanged = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image out{exchanged ? image.height : image.width, exchanged ? image.width : image.height, {}};
  out.rgb.resize(image.rgb.size());
  std::uint8_t* target = out.rgb.data();
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      const int stored_x = exchanged ? y : x, stored_y = exchanged ? x : y;
      const int from_x = flip_x ? image.width - 1 - stored_x : stored_x;
      const int from_y = flip_y ? image.height - 1 - stored_y : stored_y;
      const std::size_t from =
          (static_cast<std::size_t>(from_y) * static_cast<std::size_t>(image.width) +
           static_cast<std::size_t>(from_x)) * 3;
      std::memcpy(target, image.rgb.data() + from, 3);
      target += 3;
    }
  }
  return out;
}

}  // namespace rest_deploy
