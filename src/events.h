// SPDX-License-Identifier: Apache-2.0
// What happens to the VM, as lines of JSON for whoever listens: state changes, ready, panic, …
//
// Owned by Machine; every call on the reactor's thread. A listener that is slow loses events of its
// own and no one else's: it is told as they come, and keeps what it can.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vireo {

class EventListener {
 public:
  virtual ~EventListener() = default;
  /// `line` is one JSON object and a line feed.
  virtual void event(std::string_view line) = 0;
};

class Events {
 public:
  /// `vm` is the VM's name, `start_ns` the time that at_us counts from.
  Events(std::string vm, std::uint64_t start_ns) : vm_(std::move(vm)), start_ns_(start_ns) {}

  /// Tells every listener. `detail` is one line for people, or empty.
  void publish(std::string_view name, std::string_view detail = {});
  /// The line that publish() would send now.
  std::string line(std::string_view name, std::string_view detail) const;

  void add(EventListener& listener) { listeners_.push_back(&listener); }
  void remove(EventListener& listener) { std::erase(listeners_, &listener); }

 private:
  std::string vm_;
  std::uint64_t start_ns_;
  std::vector<EventListener*> listeners_;
};

}  // namespace vireo
