// Files of a test: read, written, copied.
#ifndef REST_DEPLOY_TESTS_FILES_H
#define REST_DEPLOY_TESTS_FILES_H

#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"

inline std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK_THAT(file.good(), "cannot open " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_all(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
  CHECK_THAT(file.good(), "cannot write " + path);
}

inline std::vector<float> read_floats(const std::string& path) {
  const std::string bytes = read_all(path);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

inline std::vector<std::string> split(const std::string& line, char separator) {
  std::vector<std::string> fields;
  std::istringstream stream(line);
  for (std::string field; std::getline(stream, field, separator);) fields.push_back(field);
  return fields;
}

// Lines of a file, each in fields separated by tabs.
inline std::vector<std::vector<std::string>> read_cases(const std::string& path) {
  std::istringstream lines(read_all(path));
  std::vector<std::vector<std::string>> cases;
  for (std::string line; std::getline(lines, line);) cases.push_back(split(line, '\t'));
  return cases;
}

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  if (CHECK_THAT(at != std::string::npos, "no " + from + " in the text")) {
    text.replace(at, from.size(), to);
  }
  return text;
}

#endif
