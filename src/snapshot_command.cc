// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot_command.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/base/unpublished_file.h"
#include "src/base/utc.h"
#include "src/memory/memory_image.h"
#include "src/memory/memory_merge.h"
#include "src/progress.h"
#include "src/snapshot/snapshot_file.h"
#include "src/uuid.h"

namespace vireo {

namespace {

/// It has all that the guest knew.
constexpr mode_t kMode = 0600;

/// A snapshot, and where its memory is.
struct Opened {
  std::string path;
  UniqueFd file;
  SnapshotFile snapshot;
  std::vector<PageRun> runs;
};

Result<Opened> open(const std::string& path) {
  Opened opened = {.path = path};
  TRY_ASSIGN(opened.file, open_file(path, O_RDONLY));
  auto snapshot = SnapshotFile::read(opened.file.get());
  if (!snapshot) {
    return std::unexpected(std::move(snapshot).error().context(path));
  }
  opened.snapshot = std::move(*snapshot);
  if (auto sections = SnapshotReader::create(opened.snapshot.sections()); !sections) {
    return std::unexpected(std::move(sections).error().context(path));
  }
  auto runs = decode_page_table(opened.snapshot.page_table(), opened.snapshot.facts().pages,
                                opened.snapshot.memory().pages);
  if (!runs) {
    return std::unexpected(std::move(runs).error().context(path));
  }
  opened.runs = std::move(*runs);
  return opened;
}

Result<MemoryLayer> layer_of(const Opened& opened) {
  const MemoryPlace& place = opened.snapshot.memory();
  auto bytes = opened.snapshot.read_page_checksums(opened.file.get());
  if (!bytes) {
    return std::unexpected(std::move(bytes).error().context(opened.path));
  }
  if (bytes->size() != place.pages * sizeof(std::uint64_t)) {
    return fail(ErrorCode::kBadInput,
                opened.path + ": page checksums: are not as many as places for pages");
  }
  MemoryLayer layer = {
      .path = opened.path, .file = opened.file.get(), .offset = place.offset, .runs = opened.runs};
  layer.checksums.resize(place.pages);
  std::ranges::copy(*bytes, std::as_writable_bytes(std::span(layer.checksums)).begin());
  return layer;
}

std::string utc_text(std::uint64_t ns) {
  const std::tm utc = utc_time(static_cast<std::time_t>(ns / 1'000'000'000));
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", utc.tm_year + 1900, utc.tm_mon + 1,
                     utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

std::uint64_t pages_of(std::span<const PageRun> runs, PageKind kind) {
  std::uint64_t pages = 0;
  for (const PageRun& run : runs) {
    pages += run.kind == kind ? run.count : 0;
  }
  return pages;
}

// info
// -------------------------------------------------------------------------------------------

Result<> print(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return fail_errno(errno, "stdout");
  }
  return {};
}

Result<> show(const SnapshotCommand& command) {
  TRY_ASSIGN(const Opened opened, open(command.files.front()));
  const SnapshotFacts& facts = opened.snapshot.facts();
  const std::uint64_t data = pages_of(opened.runs, PageKind::kData) * kImagePage;
  const std::uint64_t zero = pages_of(opened.runs, PageKind::kZero) * kImagePage;
  const std::uint64_t absent = pages_of(opened.runs, PageKind::kAbsent) * kImagePage;
  if (command.json) {
    nlohmann::ordered_json sections = nlohmann::ordered_json::array();
    for (const SnapshotSection& section : opened.snapshot.sections()) {
      sections.push_back({{"tag", section.tag},
                          {"index", section.index},
                          {"version", section.version},
                          {"bytes", section.bytes.size()}});
    }
    const nlohmann::ordered_json json = {
        {"version", 1},
        {"format_version", vsnap::kFormatVersion},
        {"kind", facts.diff ? "diff" : "full"},
        {"uuid", uuid_text(facts.uuid)},
        {"parent", facts.diff ? nlohmann::ordered_json(uuid_text(facts.parent))
                              : nlohmann::ordered_json(nullptr)},
        {"created", utc_text(facts.created_ns)},
        {"compressed", facts.compressed},
        {"memory_bytes", facts.pages * kImagePage},
        {"data_bytes", data},
        {"zero_bytes", zero},
        {"absent_bytes", absent},
        {"sections", sections}};
    return print(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  std::string text = fmt::format(
      "kind       {}\nuuid       {}\n{}created    {}\nmemory     {} bytes: {} data, {} zero, {} as "
      "in the parent\n",
      facts.diff ? "diff" : "full", uuid_text(facts.uuid),
      facts.diff ? fmt::format("parent     {}\n", uuid_text(facts.parent)) : "",
      utc_text(facts.created_ns), facts.pages * kImagePage, data, zero, absent);
  for (const SnapshotSection& section : opened.snapshot.sections()) {
    text += fmt::format("section    {} {}: version {}, {} bytes\n", section.tag, section.index,
                        section.version, section.bytes.size());
  }
  return print(text);
}

// verify
// -----------------------------------------------------------------------------------------

Result<> verify(const SnapshotCommand& command) {
  for (const std::string& path : command.files) {
    TRY_ASSIGN(const Opened opened, open(path));
    TRY_ASSIGN(const MemoryLayer layer, layer_of(opened));
    Progress progress(path, pages_of(opened.runs, PageKind::kData));
    TRY(verify_memory(layer, [&](std::uint64_t pages) { progress.add(pages); }));
  }
  return {};
}

// merge
// ------------------------------------------------------------------------------------------

/// Whether each is a diff to the one before it.
Result<> check_chain(std::span<const Opened> chain) {
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const SnapshotFacts& facts = chain[i].snapshot.facts();
    const auto wrong = [&](const std::string& what) {
      return fail(ErrorCode::kBadInput, fmt::format("{}: {}", chain[i].path, what));
    };
    if (i == 0) {
      if (facts.diff) {
        return wrong("is a diff; the first file has to be a full snapshot");
      }
      continue;
    }
    const SnapshotFacts& before = chain[i - 1].snapshot.facts();
    if (!facts.diff || facts.parent != before.uuid) {
      return wrong(fmt::format(
          "is no diff to {} ({}); {}", chain[i - 1].path, uuid_text(before.uuid),
          facts.diff ? "its parent is " + uuid_text(facts.parent) : std::string("it is full")));
    }
    if (facts.pages != before.pages || facts.architecture != before.architecture) {
      return wrong("is of another machine");
    }
  }
  return {};
}

Result<> merge(const SnapshotCommand& command) {
  std::vector<Opened> chain;
  std::vector<MemoryLayer> layers;
  for (const std::string& path : command.files) {
    TRY_ASSIGN(Opened opened, open(path));
    TRY_ASSIGN(MemoryLayer layer, layer_of(opened));
    chain.push_back(std::move(opened));
    layers.push_back(std::move(layer));
  }
  TRY(check_chain(chain));
  const SnapshotFile& last = chain.back().snapshot;
  TRY_ASSIGN(UnpublishedFile file, UnpublishedFile::create(command.output, kMode));
  const MergedMemory merged = plan_merge(layers, last.facts().pages);
  const std::uint64_t offset = snapshot_memory_offset(last.facts().pages);
  Progress progress(command.output, pages_of(merged.runs, PageKind::kData));
  TRY_ASSIGN(const std::vector<std::uint64_t> checksums,
             write_merged(merged, layers, file.fd(), offset,
                          [&](std::uint64_t pages) { progress.add(pages); }));
  SnapshotFacts facts = last.facts();
  facts.diff = false;
  facts.parent = {};
  const std::vector<std::byte> table = encode_page_table(merged.runs);
  TRY(write_snapshot_file(
      file.fd(), facts, last.sections(),
      {.page_table = table, .page_checksums = std::as_bytes(std::span(checksums))},
      {.offset = offset, .size = merged.places * kImagePage, .pages = merged.places}));
  if (::fsync(file.fd()) < 0) {
    return fail_errno(errno, command.output);
  }
  return file.replace();
}

}  // namespace

Result<> run_snapshot_command(const SnapshotCommand& command) {
  Result<> done = command.verb == "info"     ? show(command)
                  : command.verb == "verify" ? verify(command)
                                             : merge(command);
  if (!done) {
    return std::unexpected(std::move(done).error().context("snapshot " + command.verb));
  }
  return {};
}

}  // namespace vireo
