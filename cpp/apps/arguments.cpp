#include "arguments.h"

#include <cstdio>
#include <cstdlib>

namespace rest_deploy::apps {

bool Arguments::flag(const std::string& name) {
  bool found = false;
  for (auto word = words_.begin(); word != words_.end();) {
    const bool here = *word == name;
    found = found || here;
    word = here ? words_.erase(word) : word + 1;
  }
  return found;
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) {
  std::string value = otherwise;
  take(name, value);
  return value;
}

long Arguments::number(const std::string& name, long otherwise, long least, long most) {
  std::string value;
  if (!take(name, value)) return otherwise;
  char* end = nullptr;
  const long number = std::strtol(value.c_str(), &end, 10);
  if (value.empty() || *end != '\0' || number < least || number > most) {
    if (error_.empty()) {
      error_ = name + " is " + (value.empty() ? "nothing" : value) + "; expected " +
               std::to_string(least) + " to " + std::to_string(most);
    }
    return otherwise;
  }
  return number;
}

std::string Arguments::error() const {
  if (!error_.empty()) return error_;
  for (const std::string& word : words_) {
    if (word.size() > 1 && word[0] == '-') return "unknown option " + word;
  }
  return {};
}

bool Arguments::take(const std::string& name, std::string& value) {
  bool found = false;
  for (auto word = words_.begin(); word != words_.end();) {
    if (word->compare(0, name.size() + 1, name + "=") == 0) {
      value = word->substr(name.size() + 1);
      word = words_.erase(word);
      found = true;
    } else if (*word == name) {
      word = words_.erase(word);
      found = true;
      value.clear();
      if (word == words_.end()) {
        if (error_.empty()) error_ = name + " needs a value";
      } else {
        value = *word;
        word = words_.erase(word);
      }
    } else {
      ++word;
    }
  }
  return found;
}

int fail(const Status& status) {
  std::fprintf(stderr, "error: %s\n", status.message().c_str());
  if (!status.hint().empty()) std::fprintf(stderr, "  %s\n", status.hint().c_str());
  return exit_code(status.code());
}

}  // namespace rest_deploy::apps
