// Against the examples of FIPS 180-4 and lengths around the block.
#include "sha256.h"

#include "check.h"
#include "files.h"

using rest_deploy::sha256;
using rest_deploy::Sha256;

int main() {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256(std::string(1'000'000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  CHECK(sha256("abd") != sha256("abc"));
  // In pieces of any size it is the same, whatever the length modulo 64.
  for (std::size_t length = 0; length < 200; ++length) {
    std::string text;
    for (std::size_t i = 0; i < length; ++i) text += static_cast<char>(i * 7);
    for (const std::size_t piece : {std::size_t{1}, std::size_t{63}, std::size_t{65}}) {
      Sha256 hash;
      for (std::size_t at = 0; at < length; at += piece) {
        hash.update(text.data() + at, std::min(piece, length - at));
      }
      CHECK(hash.hex() == sha256(text));
    }
  }
  write_all("sha256_test.bin", std::string(100'000, 'x'));
  const auto of_file = rest_deploy::sha256_file("sha256_test.bin");
  CHECK(of_file.ok() && of_file.value() == sha256(std::string(100'000, 'x')));
  CHECK(!rest_deploy::sha256_file("/no/such/file").ok());
  return check::result();
}
