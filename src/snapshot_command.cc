// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot_command.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/base/utc.h"
#include "src/memory/memory_merge.h"
#include "src/progress.h"
#include "src/seal.h"
#include "src/snapshot/snapshot_file.h"
#include "src/snapshot_memory.h"
#include "src/snapshot_store.h"
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
  MemoryFile memory;  // of its own, if it has one
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
  auto memory = open_memory_file(opened.snapshot, path);
  if (!memory) {
    return std::unexpected(std::move(memory).error().context(path));
  }
  opened.memory = std::move(*memory);
  return opened;
}

Result<MemoryLayer> layer_of(const Opened& opened) {
  const bool apart = !opened.memory.path.empty();
  auto layer = layer_of(opened.snapshot, opened.file.get(),
                        (apart ? opened.memory.file : opened.file).get());
  if (!layer) {
    return std::unexpected(std::move(layer).error().context(opened.path));
  }
  layer->path = apart ? opened.memory.path : opened.path;
  return layer;
}

std::string utc_text(std::uint64_t ns) {
  const std::tm utc = utc_time(static_cast<std::time_t>(ns / 1'000'000'000));
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", utc.tm_year + 1900, utc.tm_mon + 1,
                     utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

std::uint64_t count_of(std::span<const PageRun> runs, PageKind kind) {
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
  const auto runs = pages_of(opened.snapshot);
  if (!runs) {
    return std::unexpected(Error(runs.error()).context(opened.path));
  }
  const std::uint64_t data = count_of(*runs, PageKind::kData) * kImagePage;
  const std::uint64_t zero = count_of(*runs, PageKind::kZero) * kImagePage;
  const std::uint64_t absent = count_of(*runs, PageKind::kAbsent) * kImagePage;
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
        {"sealed", is_sealed(opened.file.get())},
        {"memory_bytes", facts.pages * kImagePage},
        {"data_bytes", data},
        {"stored_bytes", opened.snapshot.memory().size},
        {"memory_file", opened.memory.path.empty() ? nlohmann::ordered_json(nullptr)
                                                   : nlohmann::ordered_json(opened.memory.path)},
        {"zero_bytes", zero},
        {"absent_bytes", absent},
        {"sections", sections}};
    return print(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  std::string text = fmt::format(
      "kind       {}{}\nuuid       {}\n{}created    {}\n{}memory     {} bytes: {} data{}, {} "
      "zero, {} as in the parent\n",
      facts.diff ? "diff" : "full", is_sealed(opened.file.get()) ? ", sealed" : "",
      uuid_text(facts.uuid),
      facts.diff ? fmt::format("parent     {}\n", uuid_text(facts.parent)) : "",
      utc_text(facts.created_ns),
      opened.memory.path.empty() ? "" : fmt::format("its file   {}\n", opened.memory.path),
      facts.pages * kImagePage, data,
      facts.compressed ? fmt::format(" (compressed to {})", opened.snapshot.memory().size) : "",
      zero, absent);
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
    Progress progress(path, count_of(layer.runs, PageKind::kData));
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
  SnapshotFacts facts = last.facts();
  facts.diff = false;
  facts.compressed = false;
  facts.memory_file = false;
  facts.parent = {};
  return store_snapshot({.facts = facts, .sections = last.sections(), .layers = layers}, kMode,
                        command.output);
}

// compress, decompress, split
// -----------------------------------------------------------------------------

/// The same snapshot, its memory stored in another way: in the place of `path`, or elsewhere.
Result<> store_anew(const SnapshotCommand& command, const std::string& path) {
  TRY_ASSIGN(const Opened opened, open(path));
  TRY_ASSIGN(const MemoryLayer layer, layer_of(opened));
  SnapshotFacts facts = opened.snapshot.facts();
  facts.compressed = command.verb == "compress";
  facts.memory_file = command.verb == "split";
  struct stat status = {};
  if (::fstat(opened.file.get(), &status) < 0) {
    return fail_errno(errno, path);
  }
  return store_snapshot(
      {.facts = facts, .sections = opened.snapshot.sections(), .layers = std::span(&layer, 1)},
      command.output.empty() ? status.st_mode & 07777U : kMode,
      command.output.empty() ? path : command.output);
}

Result<> store_anew(const SnapshotCommand& command) {
  for (const std::string& path : command.files) {
    TRY(store_anew(command, path));
  }
  return {};
}

// seal
// -------------------------------------------------------------------------------------------

/// What is damaged is not kept so.
Result<> seal(const SnapshotCommand& command) {
  TRY(verify(command));
  for (const std::string& path : command.files) {
    TRY_ASSIGN(const Opened opened, open(path));
    if (!opened.memory.path.empty()) {
      TRY(seal_file(opened.memory.path));
    }
    TRY(seal_file(path));
  }
  return {};
}

}  // namespace

Result<> run_snapshot_command(const SnapshotCommand& command) {
  Result<> done = command.verb == "info"     ? show(command)
                  : command.verb == "verify" ? verify(command)
                  : command.verb == "merge"  ? merge(command)
                  : command.verb == "seal"   ? seal(command)
                                             : store_anew(command);
  if (!done) {
    return std::unexpected(std::move(done).error().context("snapshot " + command.verb));
  }
  return {};
}

}  // namespace vireo
