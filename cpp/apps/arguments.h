// Command lines of the programs: --name VALUE, --name=VALUE and --flag, in any order.
#ifndef REST_DEPLOY_APPS_ARGUMENTS_H
#define REST_DEPLOY_APPS_ARGUMENTS_H

#include <string>
#include <vector>

#include "rest_deploy/status.h"

namespace rest_deploy::apps {

constexpr int kUsageExit = 2;

class Arguments {
 public:
  Arguments(int argc, char** argv) : words_(argv + 1, argv + argc) {}

  // Takes an option out; the last one of a name counts. A bad value is kept as `error()`.
  bool flag(const std::string& name);
  std::string text(const std::string& name, const std::string& otherwise);
  long number(const std::string& name, long otherwise, long least, long most);

  // What is left: neither an option that was asked for nor its value.
  const std::vector<std::string>& rest() const { return words_; }

  // The first thing wrong, with an option left over counted as unknown; "" when all is well.
  std::string error() const;

 private:
  bool take(const std::string& name, std::string& value);

  std::vector<std::string> words_;
  std::string error_;
};

// "error: …" and the hint on a line of its own, as rest-deploy prints them. Returns the exit code.
int fail(const Status& status);

}  // namespace rest_deploy::apps

#endif
