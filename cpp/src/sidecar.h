// The JSON beside a model file: what it is and what it was built for (rest_deploy/artifact.py).
#ifndef REST_DEPLOY_SRC_SIDECAR_H
#define REST_DEPLOY_SRC_SIDECAR_H

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rest_deploy/runner.h"

namespace rest_deploy {

// What a TensorRT engine runs on.
struct EngineFit {
  std::string flavour;  // tensorrt or tensorrt-rtx
  std::string version;  // of it, exact
  std::vector<std::string> sms;  // compute capabilities: "86"; none: any
  std::string driver;  // newest CUDA of the driver that built it, "" without one
  std::map<std::string, std::string> options;
};

// Where an engine runs: all of a machine that decides its kernels (rest_deploy/selftest.py).
struct Site {
  std::string cpu;
  std::vector<std::string> features;
  std::string backend;
  std::string version;
  std::string threads;  // one or several
  std::string gpu;      // compute capability, "" on a CPU
  std::string driver;   // newest CUDA of it
};

// Of one output. values: probes x channels, of a map the mean of each channel.
struct Expected {
  std::string name;
  std::vector<float> values;
  double bound = 0;
  std::optional<double> built;  // error where it was built
};

// What an engine carries to check itself where it arrives.
struct SelfTest {
  std::vector<std::string> probes;  // PNG files in base64
  std::vector<Expected> expected;
  std::string reference;
  std::size_t batch = 1;
};

struct Sidecar {
  std::string kind;  // onnx or engine
  std::string sha256;
  std::string data_sha256;  // of weights beside the model, "" when they are inside it
  std::string command;  // that made it
  Metadata metadata;
  // Of an engine; empty for an exported float model.
  std::string backend;
  std::string precision;
  std::string rest;  // what the unquantized part of an 8-bit graph computes in
  std::optional<EngineFit> fit;
  bool gated = false;  // it passed the accuracy gate
  std::optional<Site> site;
  std::optional<SelfTest> selftest;
  std::string text_sha256;  // of the sidecar itself
};

// Of JSON text. `path` is for messages. Code::artifact for what is malformed.
Result<Sidecar> parse_sidecar(std::string_view text, const std::string& path);

// Of `artifact` + ".json". Code::artifact when there is none, when it is malformed, and when its
// hashes are not those of the files; for an engine also when a byte of the sidecar itself changed.
Result<Sidecar> read_sidecar(const std::string& artifact);

// The sidecar of an engine as it was written: its last field is the hash of all others.
bool seal_holds(std::string_view text);

Result<std::string> read_text(const std::string& path);

}  // namespace rest_deploy

#endif
