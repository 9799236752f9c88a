// SPDX-License-Identifier: Apache-2.0
// Fills a template of the manual or of a shell's completion: each line "@NAME@" or "@NAME
// ARGUMENT@" becomes the part that is made from the tables of this folder.
//
// usage: make_manual TEMPLATE >FILE
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "src/manual/completions.h"
#include "src/manual/pages.h"

namespace {

std::string part(std::string_view words) {
  const std::size_t space = words.find(' ');
  const std::string_view name = words.substr(0, space);
  const std::string_view argument =
      space == std::string_view::npos ? std::string_view() : words.substr(space + 1);
  const std::string text = vireo::manual::page_part(name, argument);
  return text.empty() ? vireo::manual::completion_part(name) : text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: make_manual TEMPLATE >FILE\n", stderr);
    return EXIT_FAILURE;
  }
  std::ifstream file(argv[1]);
  std::string line;
  while (std::getline(file, line)) {
    if (line.size() < 3 || !line.starts_with('@') || !line.ends_with('@')) {
      std::puts(line.c_str());
      continue;
    }
    const std::string text = part(std::string_view(line).substr(1, line.size() - 2));
    if (text.empty()) {
      std::fprintf(stderr, "make_manual: %s: %s is no part\n", argv[1], line.c_str());
      return EXIT_FAILURE;
    }
    std::fputs(text.c_str(), stdout);
  }
  return file.eof() && std::fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
