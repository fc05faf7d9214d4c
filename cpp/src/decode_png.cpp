// PNG through libpng, expanded to 8-bit RGB.
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string>

#include "decode.h"

namespace rest_deploy {
namespace {

struct Source {
  const std::uint8_t* bytes;
  std::size_t left;
};

// libpng reports errors by a jump. Every function below that sets the jump's target has no local
// variable with a destructor, so that nothing is skipped.
struct Decoder {
  png_structp png;
  png_infop info;
  Source source;
  char message[128];
};

[[noreturn]] void fail(png_structp png, png_const_charp message) {
  auto* decoder = static_cast<Decoder*>(png_get_error_ptr(png));
  std::snprintf(decoder->message, sizeof decoder->message, "%s", message);
  png_longjmp(png, 1);
}

void say_nothing(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep target, std::size_t count) {
  auto* source = static_cast<Source*>(png_get_io_ptr(png));
  if (count > source->left) png_error(png, "the file is truncated");
  std::memcpy(target, source->bytes, count);
  source->bytes += count;
  source->left -= count;
}

bool read_header(Decoder& decoder) {
  decoder.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &decoder, fail, say_nothing);
  if (decoder.png == nullptr) return false;
  if (setjmp(png_jmpbuf(decoder.png)) != 0) return false;
  decoder.info = png_create_info_struct(decoder.png);
  png_set_read_fn(decoder.png, &decoder.source, read_bytes);
  png_set_crc_action(decoder.png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_set_user_limits(decoder.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // our own limits follow
  png_read_info(decoder.png, decoder.info);
  return true;
}

// `rows`: a pointer for every row of width x 3 bytes.
bool read_pixels(Decoder& decoder, png_bytepp rows, std::size_t row_bytes) {
  png_structp png = decoder.png;
  if (setjmp(png_jmpbuf(png)) != 0) return false;
  const int kind = png_get_color_type(png, decoder.info);
  if (kind == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (kind == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png);
  if (kind == PNG_COLOR_TYPE_GRAY || kind == PNG_COLOR_TYPE_GRAY_ALPHA) png_set_gray_to_rgb(png);
  png_set_strip_16(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, decoder.info);
  if (png_get_rowbytes(png, decoder.info) != row_bytes) png_error(png, "unexpected pixel format");
  png_read_image(png, rows);
  return true;
}

// What stands behind the pixels. They are all there: damage from here on loses none.
void read_end(Decoder& decoder) {
  if (setjmp(png_jmpbuf(decoder.png)) != 0) return;
  png_read_end(decoder.png, decoder.info);
}

struct Destroy {
  Decoder& decoder;
  ~Destroy() { png_destroy_read_struct(&decoder.png, &decoder.info, nullptr); }
};

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// A "Raw profile": an empty line, its name, its length, then hexadecimal digits.
std::string raw_profile(std::string_view text) {
  for (int line = 0; line < 3; ++line) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) return {};
    text.remove_prefix(end + 1);
  }
  std::string bytes;
  int high = -1;
  for (const char c : text) {
    const int value = digit(c);
    if (value < 0) continue;
    if (high < 0) {
      high = value;
    } else {
      bytes += static_cast<char>(high * 16 + value);
      high = -1;
    }
  }
  return bytes;
}

Result<int> orientation_of(const Decoder& decoder) {
  std::string exif, raw, xmp;
  png_uint_32 length = 0;
  png_bytep block = nullptr;
  if (png_get_eXIf_1(decoder.png, decoder.info, &length, &block) != 0) {
    exif.assign(reinterpret_cast<const char*>(block), length);
  }
  png_textp texts = nullptr;
  int count = 0;
  png_get_text(decoder.png, decoder.info, &texts, &count);
  for (int i = 0; i < count; ++i) {
    const std::string_view key = texts[i].key;
    const std::size_t size = texts[i].text_length != 0 ? texts[i].text_length
                                                       : texts[i].itxt_length;
    const std::string_view text(texts[i].text, size);
    if (key == "XML:com.adobe.xmp") xmp = text;
    if (key == "Raw profile type exif") raw = raw_profile(text);
  }
  Result<std::optional<int>> found = exif_orientation(exif.empty() ? raw : exif);
  if (!found) return found.status();
  return found.value().value_or(xmp_orientation(xmp).value_or(1));
}

Status failed(const Decoder& decoder) {
  return {Code::image, std::string("the PNG image cannot be decoded: ") + decoder.message};
}

}  // namespace

Result<Stored> decode_png(const std::uint8_t* bytes, std::size_t size, std::int64_t max_pixels) {
  Decoder decoder{};
  decoder.source = {bytes, size};
  const Destroy destroy{decoder};
  if (!read_header(decoder)) return failed(decoder);
  const std::size_t width = png_get_image_width(decoder.png, decoder.info);
  const std::size_t height = png_get_image_height(decoder.png, decoder.info);
  if (Status status = check_dimensions(static_cast<std::int64_t>(width),
                                       static_cast<std::int64_t>(height), max_pixels);
      !status.ok()) {
    return status;
  }
  Image image{static_cast<int>(width), static_cast<int>(height), {}};
  image.rgb.resize(width * height * 3);
  std::vector<png_bytep> rows(height);
  for (std::size_t y = 0; y < height; ++y) rows[y] = image.rgb.data() + y * width * 3;
  if (!read_pixels(decoder, rows.data(), width * 3)) return failed(decoder);
  read_end(decoder);
  const Result<int> orientation = orientation_of(decoder);
  if (!orientation) return orientation.status();
  return Stored{std::move(image), orientation.value()};
}

}  // namespace rest_deploy
