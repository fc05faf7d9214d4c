// Does this engine answer here as it did where it was built? Asked once on every kind of machine
// (rest_deploy/runtime/arrival.py, which says why and fixes the key of what is remembered).
#ifndef REST_DEPLOY_SRC_SELFTEST_H
#define REST_DEPLOY_SRC_SELFTEST_H

#include <string>

#include "sidecar.h"

namespace rest_deploy {

// This machine. backend: "openvino/cpu", "tensorrt/cuda"; threads: of one call, 0 for all cores; gpu
// and driver: "" on a CPU.
Site site_here(const std::string& backend, const std::string& version, int threads,
               const std::string& gpu = {}, const std::string& driver = {});

// Runs the probes unless that was passed here before. Code::selftest for other answers than where
// it was built, Code::artifact for probes that are damaged. A file without a self-test passes.
Status check_arrival(const std::string& path, const Sidecar& sidecar, const Runner& runner,
                     const Site& here);

// Of what is remembered: 64 hexadecimal digits.
std::string selftest_key(const Sidecar& sidecar, const Site& here);

// Where it is kept. A folder that cannot be written costs the probes at each start.
std::string selftest_memory(const std::string& path, const std::string& key);

// Of base64 without line breaks; false for what is none.
bool from_base64(std::string_view text, std::string& bytes);

}  // namespace rest_deploy

#endif
