// A few lines instead of a test framework: a failed check prints its place, main returns 1.
#ifndef REST_DEPLOY_TESTS_CHECK_H
#define REST_DEPLOY_TESTS_CHECK_H

#include <atomic>
#include <cstdio>
#include <string>

namespace check {

struct Count {
  std::atomic<long> checks{0};  // some checks run in threads
  std::atomic<long> failures{0};
};

inline Count count;

inline bool that(bool holds, const std::string& what, const char* file, int line) {
  ++count.checks;
  if (!holds) {
    if (++count.failures <= 30) std::printf("%s:%d: %s\n", file, line, what.c_str());
  }
  return holds;
}

// A run without a check is a failure: it tested nothing.
inline int result() {
  std::printf("%ld checks, %ld failures\n", count.checks.load(), count.failures.load());
  return count.failures == 0 && count.checks > 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(holds) check::that((holds), #holds, __FILE__, __LINE__)
#define CHECK_THAT(holds, what) check::that((holds), (what), __FILE__, __LINE__)

#endif
