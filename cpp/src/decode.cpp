#include "decode.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>

namespace rest_deploy {
namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

Result<std::vector<std::uint8_t>> read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (!file) return Status(Code::image, "cannot open the image " + path);
  std::vector<std::uint8_t> bytes;
  std::array<std::uint8_t, 65536> block;
  std::size_t got = 0;
  while ((got = std::fread(block.data(), 1, block.size(), file.get())) > 0) {
    bytes.insert(bytes.end(), block.begin(), block.begin() + static_cast<std::ptrdiff_t>(got));
  }
  if (std::ferror(file.get()) != 0) return Status(Code::image, "cannot read the image " + path);
  return bytes;
}

bool starts_with(const std::uint8_t* bytes, std::size_t size, std::string_view magic) {
  return size >= magic.size() && std::memcmp(bytes, magic.data(), magic.size()) == 0;
}

}  // namespace

Status check_dimensions(std::int64_t width, std::int64_t height, std::int64_t max_pixels) {
  const std::string size = std::to_string(width) + "x" + std::to_string(height);
  if (width < kSmallestSide || height < kSmallestSide) {
    return {Code::image, "the image is " + size + "; expected at least 32x32"};
  }
  if (width > max_pixels / height) {
    return {Code::too_large,
            "the image has " + size + " pixels; expected at most " + std::to_string(max_pixels),
            "scale it down first"};
  }
  return {};
}

Result<Image> decode_image(const std::uint8_t* bytes, std::size_t size, std::int64_t max_pixels) {
  using namespace std::string_view_literals;
  if (bytes == nullptr || size == 0) return Status(Code::image, "the image has no bytes");
  const std::int64_t limit = std::clamp<std::int64_t>(max_pixels, 1, kMaxPixels);
  const bool jpeg = starts_with(bytes, size, "\xff\xd8\xff"sv);
  if (!jpeg && !starts_with(bytes, size, "\x89PNG\r\n\x1a\n"sv)) {
    return Status(Code::image, "this is no JPEG or PNG image", "convert it to one of them");
  }
  Result<Stored> stored = jpeg ? decode_jpeg(bytes, size, limit) : decode_png(bytes, size, limit);
  if (!stored) return stored.status();
  return upright(std::move(stored.value().image), stored.value().orientation);
}

Result<Image> load_image(const std::string& path, std::int64_t max_pixels) {
  const Result<std::vector<std::uint8_t>> bytes = read_file(path);
  if (!bytes) return bytes.status();
  Result<Image> image = decode_image(bytes.value().data(), bytes.value().size(), max_pixels);
  if (image) return image;
  const Status why = image.status();
  return Status(why.code(), path + ": " + why.message(), why.hint());
}

}  // namespace rest_deploy
