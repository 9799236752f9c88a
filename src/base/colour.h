// SPDX-License-Identifier: Apache-2.0
// Colour in messages for people: on stderr, where that is a terminal which has colours and whose
// user has not set NO_COLOR (no-color.org). Main thread.
#pragma once

#include <string>
#include <string_view>

namespace vireo {

enum class Colour : unsigned char { kRed = 31, kYellow = 33 };  // as ECMA-48 numbers them

bool stderr_has_colours();

/// `text` between the sequences that begin and end a colour.
std::string coloured(Colour colour, std::string_view text);

/// What begins each message of a command on stderr.
std::string message_prefix();

}  // namespace vireo
