// IEEE half precision on the host, for engines whose tensors are 16 bit.
#ifndef REST_DEPLOY_SRC_HALF_H
#define REST_DEPLOY_SRC_HALF_H

#include <cmath>
#include <cstdint>
#include <cstring>

namespace rest_deploy {

// To the nearest, ties to even; what is too large becomes infinity, as NumPy converts.
inline std::uint16_t to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  const std::uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);   // NaN
  if (size >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65520 and more
  if (size < 0x38800000) {  // below 2^-14: a multiple of 2^-24
    const float scaled = std::fabs(value) * 16777216.0F;
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(std::nearbyint(scaled)));
  }
  const std::uint32_t odd = size >> 13 & 1;
  return static_cast<std::uint16_t>(sign | (size - 0x38000000 + 0xfff + odd) >> 13);
}

inline float from_half(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16, exponent = half >> 10 & 0x1fU;
  const std::uint32_t fraction = half & 0x3ffU;
  if (exponent == 0) {
    const float small = static_cast<float>(fraction) / 16777216.0F;
    return sign != 0 ? -small : small;
  }
  const std::uint32_t bits =
      sign | (exponent == 31 ? 0x7f800000U : (exponent + 112) << 23) | fraction << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace rest_deploy

#endif
