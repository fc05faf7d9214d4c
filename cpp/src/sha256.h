// SHA-256 (FIPS 180-4).
#ifndef REST_DEPLOY_SRC_SHA256_H
#define REST_DEPLOY_SRC_SHA256_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "rest_deploy/status.h"

namespace rest_deploy {

class Sha256 {
 public:
  void update(const void* bytes, std::size_t size);
  // Lower-case hexadecimal; no update may follow.
  std::string hex();

 private:
  void block(const std::uint8_t* bytes);

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> pending_{};
  std::uint64_t length_ = 0;
};

std::string sha256(std::string_view bytes);

// Of a file's bytes. Code::artifact when it cannot be read.
Result<std::string> sha256_file(const std::string& path);

}  // namespace rest_deploy

#endif
