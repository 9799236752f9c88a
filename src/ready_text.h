// SPDX-License-Identifier: Apache-2.0
// Watches the guest's console for the text that makes the VM ready, and passes every byte on.
#pragma once

#include <cstddef>
#include <string_view>

#include "devices/legacy/serial_16550.h"
#include "devices/legacy/text_matcher.h"

namespace vireo {

class ReadyTextListener {
 public:
  virtual ~ReadyTextListener() = default;
  /// The text was written; it may come again. On a vCPU's thread.
  virtual void ready_text_seen() = 0;
};

/// Owned by Machine; called from vCPU threads, never two at a time.
class ReadyText final : public SerialOutput {
 public:
  /// `text` is not empty; the others outlive the object.
  ReadyText(std::string_view text, SerialOutput& next, ReadyTextListener& listener)
      : matcher_(text), next_(next), listener_(listener) {}

  void transmit(std::byte byte) override {
    next_.transmit(byte);
    if (matcher_.feed(std::to_integer<char>(byte))) {
      listener_.ready_text_seen();
    }
  }
  void receiver_empty() override { next_.receiver_empty(); }

 private:
  TextMatcher matcher_;
  SerialOutput& next_;
  ReadyTextListener& listener_;
};

}  // namespace vireo
