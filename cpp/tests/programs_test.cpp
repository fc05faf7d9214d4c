// Quantiles and command lines.
#include "arguments.h"
#include "check.h"
#include "classify/latency.h"

using rest_deploy::apps::Arguments;
using rest_deploy::apps::quantile;

namespace {

Arguments arguments(std::vector<std::string> words) {
  std::vector<char*> pointers{nullptr};
  for (std::string& word : words) pointers.push_back(word.data());
  return {static_cast<int>(pointers.size()), pointers.data()};
}

void quantiles() {
  CHECK(std::isnan(quantile({}, 0.5)));
  CHECK(quantile({7}, 0.99) == 7);
  CHECK(quantile({3, 1, 2}, 0.5) == 2);
  CHECK(quantile({4, 1, 3, 2}, 0.5) == 2.5);
  CHECK(quantile({0, 10}, 0.9) == 9);
  CHECK(quantile({0, 10}, 1.0) == 10);
}

void command_lines() {
  Arguments all = arguments({"a.onnx", "--top", "3", "b.png", "--json", "--name=x y", "--top=4"});
  CHECK(all.flag("--json") && !all.flag("--json"));
  CHECK(all.number("--top", 5, 1, 10) == 4);
  CHECK(all.text("--name", "z") == "x y");
  CHECK(all.number("--other", 5, 1, 10) == 5);
  CHECK(all.rest() == std::vector<std::string>({"a.onnx", "b.png"}));
  CHECK(all.error().empty());
  for (const char* value : {"0", "11", "x", "3x", ""}) {
    Arguments bad = arguments({"--top", value});
    CHECK(bad.number("--top", 5, 1, 10) == 5 && !bad.error().empty());
  }
  Arguments open = arguments({"--top"});
  CHECK(open.number("--top", 5, 1, 10) == 5 && open.error() == "--top needs a value");
  CHECK(arguments({"--unknown"}).error() == "unknown option --unknown");
  CHECK(arguments({"-"}).error().empty());
}

}  // namespace

int main() {
  quantiles();
  command_lines();
  return check::result();
}
