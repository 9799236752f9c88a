// SPDX-License-Identifier: Apache-2.0
#include "src/base/colour.h"

#include <cstdlib>
#include <utility>

#include <unistd.h>

#include <fmt/core.h>

namespace vireo {

bool stderr_has_colours() {
  const char* const refused = std::getenv("NO_COLOR");
  const char* const terminal = std::getenv("TERM");
  return (refused == nullptr || *refused == '\0') && terminal != nullptr && *terminal != '\0' &&
         std::string_view(terminal) != "dumb" && ::isatty(STDERR_FILENO) == 1;
}

std::string coloured(Colour colour, std::string_view text) {
  return fmt::format("\x1b[{}m{}\x1b[0m", std::to_underlying(colour), text);
}

std::string message_prefix() {
  return stderr_has_colours() ? coloured(Colour::kRed, "vireo:") : "vireo:";
}

}  // namespace vireo
