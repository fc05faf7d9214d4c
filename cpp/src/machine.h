// The CPU as the runtimes' kernels see it (rest_deploy/machine.py, which says why).
#ifndef REST_DEPLOY_SRC_MACHINE_H
#define REST_DEPLOY_SRC_MACHINE_H

#include <string>
#include <string_view>
#include <vector>

namespace rest_deploy {

// name: the model, with family and stepping; features: flags by which runtimes choose kernels.
struct Cpu {
  std::string name;
  std::vector<std::string> features;
};

// Of the text of /proc/cpuinfo.
Cpu cpu_of(std::string_view cpuinfo);

// This machine's.
Cpu cpu_here();

// The variable that holds oneDNN below what the CPU has, "NAME=VALUE"; "" where none is set.
std::string cap();

// What a cap leaves of them; the value's case does not count.
std::vector<std::string> held(const std::vector<std::string>& features, std::string_view cap);

// Whether sums of 8-bit products are exact with these features.
bool adds_bytes_exactly(const std::vector<std::string>& features);

// "AVX2 without VNNI"
std::string instruction_set(const std::vector<std::string>& features);

// CPUs this process may run on.
int cores();

}  // namespace rest_deploy

#endif
