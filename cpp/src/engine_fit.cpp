#include "engine_fit.h"

#include <algorithm>
#include <cstdlib>

namespace rest_deploy {
namespace {

// The command that built the engine, for another compute capability.
std::string for_gpu(std::string command, const std::string& flavour, const std::string& sm) {
  const std::string option = " --target-sm ";
  const std::size_t at = command.find(option);
  if (at != std::string::npos) {
    const std::size_t from = at + option.size();
    const std::size_t end = std::min(command.find(' ', from), command.size());
    return command.replace(from, end - from, sm);
  }
  return flavour == "tensorrt-rtx" ? command + option + sm : command;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

Status check_fit(const std::string& path, const Sidecar& sidecar, const Here& here) {
  const EngineFit& fit = *sidecar.fit;
  if (fit.flavour != here.flavour) {
    return {Code::missing,
            path + " is a " + fit.flavour + " " + fit.version +
                " engine, and this library was built with " + here.flavour,
            "configure it with the TENSORRT_ROOT of " + fit.flavour};
  }
  if (fit.version != here.version && fit.options.count("version-compatible") == 0) {
    return {Code::artifact,
            path + " was built by " + fit.flavour + " " + fit.version + ", here is " +
                here.version + ": engines fit the version that built them",
            sidecar.command};
  }
  if (here.sm.empty()) {
    return {Code::missing, path + " runs on an NVIDIA GPU, and none is here",
            "rest-deploy doctor shows what is missing; a .onnx model runs on a CPU"};
  }
  if (!fit.sms.empty() && std::find(fit.sms.begin(), fit.sms.end(), here.sm) == fit.sms.end()) {
    return {Code::artifact,
            path + " was built for compute capability " + joined(fit.sms) + ", the GPU here has " +
                here.sm,
            for_gpu(sidecar.command, fit.flavour, here.sm)};
  }
  if (!fit.driver.empty()) {
    char* rest = nullptr;
    const long major = std::strtol(fit.driver.c_str(), &rest, 10);
    const long minor = *rest == '.' ? std::strtol(rest + 1, nullptr, 10) : 0;
    if (here.cuda_major < major || (here.cuda_major == major && here.cuda_minor < minor)) {
      return {Code::artifact,
              path + " was built with a driver for CUDA " + fit.driver +
                  ", the driver here runs up to CUDA " + std::to_string(here.cuda_major) + "." +
                  std::to_string(here.cuda_minor),
              "update the driver, or " + sidecar.command};
    }
  }
  if (fit.options.count("strip-weights") != 0) {
    return {Code::artifact, path + " was built without its weights (--strip-weights)",
            "rest-deploy refit " + path + " --checkpoint F"};
  }
  return {};
}

}  // namespace rest_deploy
