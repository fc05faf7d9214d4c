#include "machine.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

namespace rest_deploy {
namespace {

// In this order, which the key of a self-test has too.
constexpr std::array kFeatures{"avx2",        "fma",         "avx512f",  "avx512_vnni", "avx_vnni",
                               "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",    "asimddp",
                               "i8mm",        "bf16",        "sve"};

constexpr std::array kIntegerUnits{"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"};

using Names = std::set<std::string, std::less<>>;

// What each cap leaves, by oneDNN's names; one that is not here leaves everything.
const std::map<std::string, Names, std::less<>>& caps() {
  static const Names vector{"avx2", "fma"};
  static const Names wide{"avx2", "fma", "avx512f"};
  static const Names bytes{"avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni"};
  static const Names halves{"avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"};
  static const Names most{"avx2",     "fma",         "avx512f",    "avx512_vnni",
                          "avx_vnni", "avx512_bf16", "avx512_fp16"};
  static const std::map<std::string, Names, std::less<>> found{
      {"SSE41", {}},
      {"AVX", {}},
      {"AVX2", vector},
      {"AVX2_VNNI", {"avx2", "fma", "avx_vnni"}},
      {"AVX2_VNNI_2", {"avx2", "fma", "avx_vnni"}},
      {"AVX512_CORE", wide},
      {"AVX512_CORE_VNNI", bytes},
      {"AVX512_CORE_BF16", halves},
      {"AVX10_1_512", most},
      {"AVX512_CORE_FP16", most},
  };
  return found;
}

std::string stripped(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  return std::string(text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1));
}

// Of `key : value` lines the first with that key; "" without.
std::string field(std::string_view text, std::string_view key) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    const std::size_t colon = line.find(':');
    if (colon != std::string_view::npos && stripped(line.substr(0, colon)) == key) {
      return stripped(line.substr(colon + 1));
    }
    at = end + 1;
  }
  return {};
}

template <class Wanted>
bool any_of(const std::vector<std::string>& features, const Wanted& wanted) {
  return std::any_of(features.begin(), features.end(), [&](const std::string& feature) {
    return std::find(wanted.begin(), wanted.end(), feature) != wanted.end();
  });
}

}  // namespace

Cpu cpu_of(std::string_view cpuinfo) {
  std::string flags = field(cpuinfo, "flags");
  if (flags.empty()) flags = field(cpuinfo, "Features");
  std::istringstream words(flags);
  const Names found{std::istream_iterator<std::string>(words), {}};
  Cpu cpu;
  for (const char* feature : kFeatures) {
    if (found.count(feature) != 0) cpu.features.emplace_back(feature);
  }
  cpu.name = field(cpuinfo, "model name");
  if (cpu.name.empty()) {
    utsname system{};
    if (uname(&system) == 0) cpu.name = system.machine;
  }
  const std::string family = field(cpuinfo, "cpu family"), model = field(cpuinfo, "model"),
                    stepping = field(cpuinfo, "stepping");
  if (!family.empty() && !model.empty() && !stepping.empty()) {
    cpu.name += " (" + family + "/" + model + "/" + stepping + ")";
  }
  return cpu;
}

Cpu cpu_here() {
  std::ifstream file("/proc/cpuinfo", std::ios::binary);
  return cpu_of(std::string{std::istreambuf_iterator<char>(file), {}});
}

std::string cap() {
  for (const char* name : {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return std::string(name) + "=" + value;
  }
  return {};
}

std::vector<std::string> held(const std::vector<std::string>& features, std::string_view cap) {
  std::string level(cap.substr(std::min(cap.size(), cap.find('=') + 1)));
  for (char& c : level) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  const auto left = caps().find(level);
  if (left == caps().end()) return features;
  std::vector<std::string> kept;
  for (const std::string& feature : features) {
    if (left->second.count(feature) != 0) kept.push_back(feature);
  }
  return kept;
}

bool adds_bytes_exactly(const std::vector<std::string>& features) {
  return any_of(features, kIntegerUnits);
}

std::string instruction_set(const std::vector<std::string>& features) {
  const bool exact = adds_bytes_exactly(features);
  if (any_of(features, std::array{"asimddp", "i8mm", "sve"})) {
    return std::string("Arm ") + (exact ? "with" : "without") + " dot products";
  }
  const char* widest = any_of(features, std::array{"avx512f"}) ? "AVX-512"
                       : any_of(features, std::array{"avx2"})  ? "AVX2"
                                                               : "SSE";
  return std::string(widest) + (exact ? " with" : " without") + " VNNI";
}

int cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

}  // namespace rest_deploy
