// JPEG through libjpeg: its defaults (slow integer DCT, fancy upsampling) are Pillow's.
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string>

// jpeglib.h needs the two above.
#include <jerror.h>
#include <jpeglib.h>

#include "decode.h"

namespace rest_deploy {
namespace {

// A progressive file may hold thousands of scans over few bytes, each of which costs a whole pass.
constexpr int kMostScans = 500;

// libjpeg reports errors by a jump. Every function below that sets the jump's target has no local
// variable with a destructor, so that nothing is skipped.
struct Decoder {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_source_mgr source;
  jpeg_progress_mgr progress;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};

Decoder& decoder_of(j_common_ptr info) { return *static_cast<Decoder*>(info->client_data); }

[[noreturn]] void fail(j_common_ptr info) {
  Decoder& decoder = decoder_of(info);
  info->err->format_message(info, decoder.message);
  std::longjmp(decoder.jump, 1);
}

void say_nothing(j_common_ptr) {}

void nothing(j_decompress_ptr) {}

boolean out_of_bytes(j_decompress_ptr info) {
  ERREXIT(info, JERR_INPUT_EOF);
  return FALSE;
}

void skip(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  if (static_cast<unsigned long>(count) > info->src->bytes_in_buffer) out_of_bytes(info);
  info->src->next_input_byte += count;
  info->src->bytes_in_buffer -= static_cast<std::size_t>(count);
}

void limit_scans(j_common_ptr info) {
  if (info->is_decompressor &&
      reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMostScans) {
    ERREXIT(info, JERR_BAD_PROGRESSION);
  }
}

bool read_header(Decoder& decoder, const std::uint8_t* bytes, std::size_t size) {
  jpeg_decompress_struct& info = decoder.info;
  info.err = jpeg_std_error(&decoder.errors);
  decoder.errors.error_exit = fail;
  decoder.errors.output_message = say_nothing;
  info.client_data = &decoder;
  if (setjmp(decoder.jump) != 0) return false;
  jpeg_create_decompress(&info);
  decoder.source.next_input_byte = bytes;
  decoder.source.bytes_in_buffer = size;
  decoder.source.init_source = nothing;
  decoder.source.fill_input_buffer = out_of_bytes;
  decoder.source.skip_input_data = skip;
  decoder.source.resync_to_restart = jpeg_resync_to_restart;
  decoder.source.term_source = nothing;
  info.src = &decoder.source;
  decoder.progress.progress_monitor = limit_scans;
  info.progress = &decoder.progress;
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
  return jpeg_read_header(&info, TRUE) == JPEG_HEADER_OK;
}

// `pixels`: room for height rows of width x channels bytes.
bool read_pixels(Decoder& decoder, std::uint8_t* pixels) {
  jpeg_decompress_struct& info = decoder.info;
  if (setjmp(decoder.jump) != 0) return false;
  jpeg_start_decompress(&info);
  const std::size_t length =
      static_cast<std::size_t>(info.output_width) * static_cast<std::size_t>(info.output_components);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = pixels + length * info.output_scanline;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);  // a file without its end was cut off
  return true;
}

struct Destroy {
  Decoder& decoder;
  ~Destroy() { jpeg_destroy_decompress(&decoder.info); }
};

Status failed(const Decoder& decoder) {
  return {Code::image, std::string("the JPEG image cannot be decoded: ") + decoder.message};
}

std::uint8_t scaled(unsigned a, unsigned b) {  // a * b / 255, rounded
  const unsigned product = a * b + 128;
  return static_cast<std::uint8_t>(((product >> 8) + product) >> 8);
}

// Grey and CMYK to RGB. CMYK files store the complements, as Adobe's programs began it.
std::vector<std::uint8_t> to_rgb(std::vector<std::uint8_t> pixels, int channels) {
  if (channels == 3) return pixels;
  const std::size_t step = static_cast<std::size_t>(channels);
  std::vector<std::uint8_t> rgb(pixels.size() / step * 3);
  for (std::size_t i = 0; i < pixels.size() / step; ++i) {
    const std::uint8_t* from = pixels.data() + i * step;
    for (std::size_t c = 0; c < 3; ++c) {
      if (channels == 1) {
        rgb[3 * i + c] = from[0];
      } else {
        const unsigned white = from[3], ink = 255U - from[c];
        rgb[3 * i + c] = static_cast<std::uint8_t>(white - scaled(ink, white));
      }
    }
  }
  return rgb;
}

// Of a damaged EXIF block: as stored, as Pillow takes it.
int orientation_of(const jpeg_decompress_struct& info) {
  using namespace std::string_view_literals;
  constexpr std::string_view exif_name = "Exif\0\0"sv;
  constexpr std::string_view xmp_name = "http://ns.adobe.com/xap/1.0/\0"sv;
  std::string exif, xmp;  // EXIF may be spread over several markers
  for (jpeg_saved_marker_ptr marker = info.marker_list; marker != nullptr; marker = marker->next) {
    std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.substr(0, exif_name.size()) == exif_name) {
      exif += data.substr(exif.empty() ? 0 : exif_name.size());
    } else if (data.substr(0, xmp_name.size()) == xmp_name) {
      xmp = data.substr(xmp_name.size());
    }
  }
  const Result<std::optional<int>> found = exif_orientation(exif);
  if (!found) return 1;
  return found.value().value_or(xmp_orientation(xmp).value_or(1));
}

}  // namespace

Result<Stored> decode_jpeg(const std::uint8_t* bytes, std::size_t size, std::int64_t max_pixels) {
  Decoder decoder{};
  const Destroy destroy{decoder};
  if (!read_header(decoder, bytes, size)) return failed(decoder);
  jpeg_decompress_struct& info = decoder.info;
  if (Status status = check_dimensions(info.image_width, info.image_height, max_pixels);
      !status.ok()) {
    return status;
  }
  const int channels = info.num_components;
  if (channels != 1 && channels != 3 && channels != 4) {
    return Status(Code::image, "the JPEG image has " + std::to_string(channels) +
                                   " channels; expected 1, 3 or 4");
  }
  info.out_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
  const int orientation = orientation_of(info);
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(info.image_width) * info.image_height *
                                   static_cast<std::size_t>(channels));
  if (!read_pixels(decoder, pixels.data())) return failed(decoder);
  return Stored{Image{static_cast<int>(info.output_width), static_cast<int>(info.output_height),
                      to_rgb(std::move(pixels), channels)},
                orientation};
}

}  // namespace rest_deploy
