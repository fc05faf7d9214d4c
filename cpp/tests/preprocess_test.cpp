// Bit for bit what Pillow and NumPy gave: preprocess_test FOLDER [control], FOLDER from golden.py.
// The control changes one weight of each filter by 1 / 4096: that has to show in every case.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "check.h"
#include "decode.h"
#include "files.h"
#include "resample.h"

using namespace rest_deploy;

namespace {

using Bytes = std::vector<std::uint8_t>;
using Fields = std::vector<std::string>;

std::string folder;

Bytes read(const std::string& name) {
  const std::string bytes = read_all(folder + "/" + name);
  return {bytes.begin(), bytes.end()};
}

Interpolation kind_of(const std::string& name) {
  return name == "bilinear" ? Interpolation::bilinear : Interpolation::bicubic;
}

std::string difference(const Bytes& got, const Bytes& expected) {
  if (got.size() != expected.size()) return "other size";
  std::size_t different = 0;
  int most = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const int distance = std::abs(int{got[i]} - int{expected[i]});
    different += distance != 0;
    most = std::max(most, distance);
  }
  return std::to_string(different) + " bytes differ, by up to " + std::to_string(most);
}

void equal(const Bytes& got, const Bytes& expected, const std::string& what) {
  CHECK_THAT(got == expected, what + ": " + difference(got, expected));
}

void resize(const Fields& f) {
  const int width = std::stoi(f[2]), height = std::stoi(f[3]);
  const int new_width = std::stoi(f[4]), new_height = std::stoi(f[5]);
  const Image image{width, height, read(f[6])};
  const Bytes expected = read(f[7]);
  const Image whole = resample(image, new_width, new_height, {0, 0, new_width, new_height},
                               kind_of(f[1]));
  equal(whole.rgb, expected, f[6]);
  // A part has the pixels of the whole.
  const Window part{new_width / 3, new_height / 4, new_width / 2, new_height / 3};
  const Image cut = resample(image, new_width, new_height, part, kind_of(f[1]));
  bool same = true;
  for (int y = 0; y < part.height; ++y) {
    const std::size_t row = static_cast<std::size_t>(part.width) * 3;
    const std::size_t from = (static_cast<std::size_t>(part.top + y) *
                                  static_cast<std::size_t>(new_width) +
                              static_cast<std::size_t>(part.left)) * 3;
    same = same && std::memcmp(cut.rgb.data() + row * static_cast<std::size_t>(y),
                               whole.rgb.data() + from, row) == 0;
  }
  CHECK_THAT(same, f[6] + ": a window of it differs from the whole");
}

void photo(const Fields& f) {
  const Result<Image> image = load_image(folder + "/" + f[1]);
  if (!CHECK_THAT(image.ok(), image.status().text())) return;
  CHECK_THAT(image.value().width == std::stoi(f[2]) && image.value().height == std::stoi(f[3]),
             f[1] + ": other width or height");
  equal(image.value().rgb, read(f[4]), f[1]);
}

void tensor(const Fields& f) {
  Preprocessing how;
  how.interpolation = kind_of(f[2]);
  how.resize = std::stoi(f[3]);
  how.crop = std::stoi(f[4]);
  const Fields mean = split(f[7], ','), std = split(f[8], ',');
  for (std::size_t c = 0; c < 3; ++c) {
    how.mean[c] = std::stod(mean[c]);
    how.std[c] = std::stod(std[c]);
  }
  const Result<Image> image = load_image(folder + "/" + f[1]);
  if (!CHECK_THAT(image.ok(), image.status().text())) return;
  const auto got = to_tensor(image.value(), how, {std::stoi(f[5]), std::stoi(f[6])});
  if (!CHECK_THAT(got.ok(), got.status().text())) return;
  Bytes bytes(got.value().size() * sizeof(float));
  std::memcpy(bytes.data(), got.value().data(), bytes.size());
  equal(bytes, read(f[9]), f[9]);
}

void refuse(const Fields& f) {
  const Result<Image> image = load_image(folder + "/" + f[1]);
  CHECK_THAT(!image.ok(), f[1] + " was read; expected a refusal");
  const bool huge = f[1].rfind("huge", 0) == 0 || f[1] == "endless.png";
  CHECK(image.status().code() == (huge ? Code::too_large : Code::image));
  CHECK(!image.status().message().empty());
}

// Whatever a byte is replaced by: no crash, and a status where there is no image.
void damage(const std::string& name) {
  const Bytes file = read(name);
  std::uint32_t state = 1;
  for (int turn = 0; turn < 300; ++turn) {
    Bytes broken = file;
    for (int i = 0; i <= turn % 5; ++i) {
      state = state * 1664525 + 1013904223;
      const std::size_t within = turn % 2 == 0 ? broken.size() : std::min<std::size_t>(600, broken.size());
      broken[(state >> 8) % within] = static_cast<std::uint8_t>(state);
    }
    const Result<Image> image = decode_image(broken.data(), broken.size(), 1'000'000);
    const Code code = image.status().code();
    CHECK(code == Code::ok || code == Code::image || code == Code::too_large);
  }
}

void limits() {
  CHECK(!load_image("/no/such/file.jpg").ok());
  CHECK(!decode_image(nullptr, 0).ok());
  const Bytes file = read("rgb.png");
  CHECK(decode_image(file.data(), file.size()).ok());
  CHECK(!decode_image(file.data(), file.size(), 1000).ok());
  const Image image = decode_image(file.data(), file.size()).value();
  Preprocessing how;
  how.std = {1, 1, 1};
  CHECK(to_pixels(image, how).ok());
  CHECK(!to_pixels(image, how, {31, 224}).ok());
  CHECK(!to_pixels(Image{40, 40, {}}, how).ok());
  CHECK(!to_pixels(Image{0, 0, {}}, how).ok());
  how.resize = 100;
  CHECK(!to_pixels(image, how).ok());
  how.resize = 80'000;
  CHECK(to_pixels(image, how).status().code() == Code::too_large);
}

// The control of the resize: does a wrong coefficient show?
int control(const std::vector<Fields>& cases) {
  long seen = 0, noticed = 0;
  for (const Fields& f : cases) {
    if (f[0] != "resize" || f[2] == f[4] || f[3] != f[5]) continue;  // one horizontal pass
    const int width = std::stoi(f[2]), height = std::stoi(f[3]), target = std::stoi(f[4]);
    const Bytes source = read(f[6]), expected = read(f[7]);
    for (const int change : {0, 1 << 10}) {
      Taps taps = make_taps(width, target, 0, target, kind_of(f[1]));
      for (int x = 0; x < target; ++x) {
        taps.weights[static_cast<std::size_t>(x) * static_cast<std::size_t>(taps.stride)] += change;
      }
      Bytes got;
      for (int y = 0; y < height; ++y) {
        for (int x = 0; x < target; ++x) {
          for (int c = 0; c < 3; ++c) {
            std::int32_t sum = 1 << 21;
            const Taps::Span span = taps.spans[static_cast<std::size_t>(x)];
            for (int k = 0; k < span.count; ++k) {
              sum += source[static_cast<std::size_t>((y * width + span.first + k) * 3 + c)] *
                     taps.of(x)[k];
            }
            got.push_back(static_cast<std::uint8_t>(std::min(std::max(sum >> 22, 0), 255)));
          }
        }
      }
      if (change == 0) {
        CHECK_THAT(got == expected, f[6] + ": the control itself is wrong");
      } else {
        ++seen;
        noticed += got != expected;
      }
    }
  }
  CHECK(seen > 3);
  CHECK_THAT(noticed == seen, std::to_string(noticed) + " of " + std::to_string(seen) + " noticed");
  return check::result();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  folder = argv[1];
  const std::vector<Fields> cases = read_cases(folder + "/cases.txt");
  if (argc > 2) return control(cases);
  std::map<std::string, long> seen;
  for (const Fields& fields : cases) {
    ++seen[fields[0]];
    if (fields[0] == "resize") resize(fields);
    if (fields[0] == "photo") photo(fields);
    if (fields[0] == "tensor") tensor(fields);
    if (fields[0] == "refuse") refuse(fields);
  }
  CHECK(seen["resize"] >= 200 && seen["photo"] >= 60 && seen["tensor"] >= 20 && seen["refuse"] >= 20);
  limits();
  for (const char* name : {"420_odd.jpg", "progressive.jpg", "exif6.jpg", "palette.png",
                           "exif6.png", "profile8.png"}) {
    damage(name);
  }
  return check::result();
}
