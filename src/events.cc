// SPDX-License-Identifier: Apache-2.0
#include "src/events.h"

#include <nlohmann/json.hpp>

#include "src/base/log.h"

namespace vireo {

void Events::publish(std::string_view name, std::string_view detail) {
  if (listeners_.empty()) {
    return;
  }
  const std::string text = line(name, detail);
  // A listener may leave while it is told.
  for (EventListener* const listener : std::vector(listeners_)) {
    listener->event(text);
  }
}

std::string Events::line(std::string_view name, std::string_view detail) const {
  nlohmann::ordered_json json = {
      {"version", 1}, {"event", name}, {"at_us", (monotonic_ns() - start_ns_) / 1000}, {"vm", vm_}};
  if (!detail.empty()) {
    json["detail"] = detail;
  }
  // Bytes that are no UTF-8 can come from a guest's text.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace vireo
