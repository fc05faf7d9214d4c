// Which TensorRT engines are refused where, and 16-bit conversions.
#include "engine_fit.h"

#include <cstdlib>
#include <limits>

#include "check.h"
#include "half.h"

using namespace rest_deploy;

namespace {

Sidecar sidecar() {
  Sidecar made;
  made.kind = "engine";
  made.command = "rest-deploy build-engine a.onnx --backend tensorrt-rtx --target-sm 89 --int8";
  made.fit = EngineFit{"tensorrt-rtx", "1.7.1.116", {"86", "89"}, "13.0", {}};
  return made;
}

const Here kFits{"tensorrt-rtx", "1.7.1.116", "89", 13, 1};

void refused(const Sidecar& of, const Here& here, Code code, const std::string& word) {
  const Status status = check_fit("a.engine", of, here);
  CHECK_THAT(status.code() == code, status.text());
  CHECK_THAT(status.text().find(word) != std::string::npos, status.text() + ": no " + word);
  CHECK(!status.hint().empty());
}

void fits() {
  CHECK(check_fit("a.engine", sidecar(), kFits).ok());
  Here here = kFits;
  here.flavour = "tensorrt";
  refused(sidecar(), here, Code::missing, "tensorrt-rtx 1.7.1.116");
  here = kFits;
  here.version = "1.7.1.117";
  refused(sidecar(), here, Code::artifact, "here is 1.7.1.117");
  Sidecar compatible = sidecar();
  compatible.fit->options["version-compatible"] = "";
  CHECK(check_fit("a.engine", compatible, here).ok());
  here = kFits;
  here.sm = "";
  refused(sidecar(), here, Code::missing, "NVIDIA GPU");
  here.sm = "120";
  refused(sidecar(), here, Code::artifact, "--target-sm 120 --int8");
  Sidecar without = sidecar();
  without.command = "rest-deploy build-engine a.onnx";
  refused(without, here, Code::artifact, "build-engine a.onnx --target-sm 120");
  without.fit->flavour = here.flavour = "tensorrt";
  CHECK(check_fit("a.engine", without, here).hint() == "rest-deploy build-engine a.onnx");
  Sidecar any = sidecar();
  any.fit->sms.clear();
  here = kFits;
  here.sm = "75";
  CHECK(check_fit("a.engine", any, here).ok());
  here = kFits;
  here.cuda_major = 12;
  here.cuda_minor = 9;
  refused(sidecar(), here, Code::artifact, "CUDA 12.9");
  Sidecar stripped = sidecar();
  stripped.fit->options["strip-weights"] = "";
  refused(stripped, kFits, Code::artifact, "refit a.engine");
}

void halves() {
  // Every half is what it was after going to float and back.
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = from_half(half);
    if ((bits & 0x7c00) == 0x7c00 && (bits & 0x3ff) != 0) {
      CHECK(value != value && (to_half(value) & 0x7fff) == 0x7e00);
    } else {
      CHECK(to_half(value) == half);
    }
  }
  CHECK(from_half(0x3c00) == 1.0F && from_half(0xc000) == -2.0F && from_half(0x7bff) == 65504.0F);
  CHECK(from_half(0x0001) == 1.0F / 16777216.0F);
  CHECK(to_half(65519.0F) == 0x7bff && to_half(65520.0F) == 0x7c00);
  CHECK(to_half(1.0F + 1.0F / 2048) == 0x3c00);      // a tie goes to the even one
  CHECK(to_half(1.0F + 3.0F / 2048) == 0x3c02);
  CHECK(to_half(1.0F + 1.1F / 2048) == 0x3c01);
  CHECK(to_half(-std::numeric_limits<float>::infinity()) == 0xfc00);
  CHECK(to_half(1e-9F) == 0 && to_half(-0.0F) == 0x8000);
}

}  // namespace

int main() {
  fits();
  halves();
  return check::result();
}
