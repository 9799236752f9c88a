// SPDX-License-Identifier: Apache-2.0
// A directory of a test's own, and what the tests of disks do in one.
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/catch.h"

namespace vireo {

struct Directory {
  Directory() {
    std::string name = "/tmp/vireo-disks-test.XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() { std::filesystem::remove_all(path); }

  std::string operator/(const std::string& name) const { return path + "/" + name; }
  std::set<std::string> names() const {
    std::set<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      found.insert(entry.path().filename());
    }
    return found;
  }
  void write(const std::string& name, const std::string& text, mode_t mode = 0644) const {
    std::ofstream(*this / name) << text;
    REQUIRE(::chmod((*this / name).c_str(), mode) == 0);
  }

  std::string path;
};

inline std::string content_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// What a command of the shell prints, and how it ended.
inline std::pair<std::string, int> shell(const std::string& command) {
  std::FILE* const pipe = ::popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string text;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) {
    text += static_cast<char>(c);
  }
  return {text, ::pclose(pipe)};
}

}  // namespace vireo
