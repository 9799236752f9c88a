// SPDX-License-Identifier: Apache-2.0
// Sections of a snapshot that somebody has changed.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "src/snapshot/snapshot.h"

namespace vireo {

class HostileSections {
 public:
  explicit HostileSections(std::span<const SnapshotSection> sections)
      : sections_(sections.begin(), sections.end()) {
    for (const SnapshotSection& section : sections) {
      bytes_.emplace_back(section.bytes.begin(), section.bytes.end());
    }
  }

  std::vector<std::byte>& bytes(std::size_t section) { return bytes_[section]; }
  std::span<const SnapshotSection> sections() {
    for (std::size_t i = 0; i < sections_.size(); ++i) {
      sections_[i].bytes = bytes_[i];
    }
    return sections_;
  }

 private:
  std::vector<SnapshotSection> sections_;
  std::vector<std::vector<std::byte>> bytes_;
};

/// Calls visit(sections) with each single bit of `sections` flipped.
template <typename Visit>
void for_each_flip(std::span<const SnapshotSection> sections, Visit visit) {
  HostileSections hostile(sections);
  for (std::size_t section = 0; section < sections.size(); ++section) {
    for (std::byte& byte : hostile.bytes(section)) {
      for (unsigned bit = 0; bit < 8; ++bit) {
        byte ^= std::byte{1} << bit;
        visit(hostile.sections());
        byte ^= std::byte{1} << bit;
      }
    }
  }
}

/// Calls visit(sections) with each section cut short to each length, and with one byte more.
template <typename Visit>
void for_each_length(std::span<const SnapshotSection> sections, Visit visit) {
  for (std::size_t section = 0; section < sections.size(); ++section) {
    for (std::size_t size = 0; size <= sections[section].bytes.size() + 1; ++size) {
      if (size != sections[section].bytes.size()) {
        HostileSections hostile(sections);
        hostile.bytes(section).resize(size);
        visit(hostile.sections());
      }
    }
  }
}

}  // namespace vireo
