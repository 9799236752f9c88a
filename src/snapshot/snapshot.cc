// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot/snapshot.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>

namespace vireo {

namespace {

constexpr std::size_t kTagMax = 16;

bool is_tag(std::string_view tag) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz0123456789-";
  return !tag.empty() && tag.size() <= kTagMax &&
         tag.find_first_not_of(kLetters) == std::string_view::npos;
}

bool same_name(const SnapshotSection& section, std::string_view tag, std::uint32_t index) {
  return section.tag == tag && section.index == index;
}

}  // namespace

Error section_error(std::string_view tag, std::uint32_t index, std::string_view what) {
  return {ErrorCode::kBadInput, fmt::format("section {} {}: {}", tag, index, what)};
}

void SnapshotWriter::add_section(const SnapshotSection& section, std::vector<std::byte> bytes) {
  CHECK(is_tag(section.tag) && sections_.size() < SnapshotReader::kSectionsMax);
  CHECK(std::ranges::none_of(sections_, [&section](const SnapshotSection& other) {
    return same_name(other, section.tag, section.index);
  }));
  bytes_.push_back(std::move(bytes));
  sections_.push_back(section);
  sections_.back().bytes = bytes_.back();
}

Result<SnapshotReader> SnapshotReader::create(std::span<const SnapshotSection> sections) {
  SnapshotReader reader;
  if (sections.size() > kSectionsMax) {
    return fail(ErrorCode::kBadInput,
                fmt::format("has {} sections, and may have {}", sections.size(), kSectionsMax));
  }
  for (const SnapshotSection& section : sections) {
    if (!is_tag(section.tag)) {
      return fail(ErrorCode::kBadInput, "has a section whose name is none");
    }
    if (std::ranges::any_of(reader.entries_, [&section](const Entry& entry) {
          return same_name(entry.section, section.tag, section.index);
        })) {
      return std::unexpected(section_error(section.tag, section.index, "is there twice"));
    }
    reader.entries_.push_back({.section = section});
  }
  return reader;
}

/// `version` is the newest that is known here.
Result<FieldReader> SnapshotReader::open(std::string_view tag, std::uint32_t index,
                                         std::uint32_t version) {
  const auto found = std::ranges::find_if(
      entries_, [tag, index](const Entry& entry) { return same_name(entry.section, tag, index); });
  if (found == entries_.end()) {
    return std::unexpected(section_error(tag, index, "is missing"));
  }
  CHECK(!std::exchange(found->taken, true));
  const SnapshotSection& section = found->section;
  if (section.version == 0 || section.version > version) {
    return std::unexpected(
        section_error(tag, index,
                      fmt::format("is of version {}; this vireo knows versions up to {}",
                                  section.version, version)));
  }
  return FieldReader(section.bytes, section.version);
}

Result<> SnapshotReader::finish() const {
  for (const Entry& entry : entries_) {
    if (!entry.taken) {
      return std::unexpected(
          section_error(entry.section.tag, entry.section.index, "belongs to nothing that is here"));
    }
  }
  return {};
}

}  // namespace vireo
