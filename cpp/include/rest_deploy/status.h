// Outcome of a call: no exception leaves this library but std::bad_alloc.
#ifndef REST_DEPLOY_STATUS_H
#define REST_DEPLOY_STATUS_H

#include <cassert>
#include <string>
#include <utility>
#include <variant>

namespace rest_deploy {

enum class Code {
  ok = 0,
  argument,     // an option or argument that cannot be used
  artifact,     // a model file or its sidecar is damaged, foreign or out of step
  image,        // an image cannot be decoded or is too small
  too_large,    // an image has more pixels than are allowed
  shape,        // a tensor has a shape that the model does not accept
  missing,      // a backend or a device is not here
  device,       // the device failed
  overloaded,   // the queue is full; try again later
  deadline,     // the answer was not there in time
  unavailable,  // closed, or about to be
  internal,     // a bug of this library
  selftest,     // an engine answers otherwise on this machine than where it was built
};

// `message` says what arrived and what was expected, `hint` what mends it (may be empty).
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message, std::string hint = {})
      : code_(code), message_(std::move(message)), hint_(std::move(hint)) {}

  bool ok() const noexcept { return code_ == Code::ok; }
  Code code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }
  const std::string& hint() const noexcept { return hint_; }

  // "message (hint)", as rest-deploy's Python errors print.
  std::string text() const { return hint_.empty() ? message_ : message_ + " (" + hint_ + ")"; }

 private:
  Code code_ = Code::ok;
  std::string message_;
  std::string hint_;
};

// Of a process, the same as rest-deploy's Python commands: 0, 1 a check failed, 3 bad input, 4
// missing, 6 internal.
constexpr int exit_code(Code code) noexcept {
  switch (code) {
    case Code::ok:
      return 0;
    case Code::selftest:
      return 1;
    case Code::argument:
    case Code::artifact:
    case Code::image:
    case Code::too_large:
    case Code::shape:
      return 3;
    case Code::missing:
    case Code::device:
    case Code::overloaded:
    case Code::deadline:
    case Code::unavailable:
      return 4;
    case Code::internal:
      break;
  }
  return 6;
}

// A value, or the status that says why there is none. `value()` needs `ok()`.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::move(value)) {}  // NOLINT: implicit, so that `return value;` works
  Result(Status status) : held_(std::move(status)) { assert(!this->status().ok()); }  // NOLINT

  bool ok() const noexcept { return std::holds_alternative<T>(held_); }
  explicit operator bool() const noexcept { return ok(); }

  T& value() & { return std::get<T>(held_); }
  const T& value() const& { return std::get<T>(held_); }
  T&& value() && { return std::get<T>(std::move(held_)); }

  // ok for a value.
  Status status() const { return ok() ? Status() : std::get<Status>(held_); }

 private:
  std::variant<T, Status> held_;
};

}  // namespace rest_deploy

#endif
