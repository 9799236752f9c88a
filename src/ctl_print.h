// SPDX-License-Identifier: Apache-2.0
// Answers of the control socket, as people read them. What a guest can have caused is escaped.
#pragma once

#include <string>
#include <string_view>

namespace vireo {

/// "name: value" lines of a JSON answer; a table for stats.
std::string answer_for_people(std::string_view verb, const std::string& json);
/// "12.345 s  ready" of one event.
std::string event_for_people(const std::string& json);
/// What a refused verb says.
std::string refusal_text(const std::string& json);

}  // namespace vireo
