// SPDX-License-Identifier: Apache-2.0
// The state of a machine as sections in memory, each of one struct of state (see field_writer.h).
// Where they lie in a file, and that the file is whole, is the file's to say.
//
//   writer.add(3, TimerState{…});                          // the fourth timer's
//   TRY_ASSIGN(TimerState state, reader.take<TimerState>(3));
//   if (state.period_ns == 0) {                            // judge each number before using it
//     return bad_section<TimerState>(3, "has no period");
//   }
//   …
//   TRY(reader.finish());                                  // nothing was left out
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/snapshot/field_reader.h"
#include "src/snapshot/field_writer.h"

namespace vireo {

/// An entry of the section table. No two of a snapshot have the same tag and index.
struct SnapshotSection {
  std::string_view tag;     ///< what of a machine, the struct's kTag: up to 16 of a-z, 0-9 and -
  std::uint32_t index = 0;  ///< which of several
  std::uint32_t version = 0;
  std::span<const std::byte> bytes;
};

/// The error of a section, as one line that names it.
Error section_error(std::string_view tag, std::uint32_t index, std::string_view what);

template <typename State>
std::unexpected<Error> bad_section(std::uint32_t index, std::string_view what) {
  return std::unexpected(section_error(State::kTag, index, what));
}

class SnapshotWriter {
 public:
  template <typename State>
  void add(std::uint32_t index, State state) {
    FieldWriter writer(State::kVersion);
    state.fields(writer);
    add_section({.tag = State::kTag, .index = index, .version = State::kVersion}, writer.take());
  }

  /// In the order in which they came; they live as long as the writer and until its next add().
  std::span<const SnapshotSection> sections() const { return sections_; }

 private:
  void add_section(const SnapshotSection& section, std::vector<std::byte> bytes);

  std::vector<SnapshotSection> sections_;
  std::vector<std::vector<std::byte>> bytes_;  // of each
};

/// The bytes may be anybody's: all that goes wrong is an Error (kBadInput).
class SnapshotReader {
 public:
  /// More of them are nobody's, and would cost their time.
  static constexpr std::size_t kSectionsMax = 4096;

  /// What the sections refer to outlives it.
  static Result<SnapshotReader> create(std::span<const SnapshotSection> sections);

  /// The state in a section, which has these fields and nothing else.
  template <typename State>
  Result<State> take(std::uint32_t index) {
    TRY_ASSIGN(FieldReader reader, open(State::kTag, index, State::kVersion));
    State state;
    state.fields(reader);
    if (!reader.problem().empty()) {
      return bad_section<State>(index, reader.problem());
    }
    return state;
  }
  /// Every section was taken.
  Result<> finish() const;

 private:
  struct Entry {
    SnapshotSection section;
    bool taken = false;
  };

  Result<FieldReader> open(std::string_view tag, std::uint32_t index, std::uint32_t version);

  std::vector<Entry> entries_;
};

}  // namespace vireo
