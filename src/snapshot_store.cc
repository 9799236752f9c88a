// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot_store.h"

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <utility>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/unpublished_file.h"
#include "src/memory/memory_merge.h"
#include "src/progress.h"

namespace vireo {

namespace {

/// 512 GiB. A raw file has a place, and so a checksum, for each page that the snapshot says it has.
constexpr std::uint64_t kRawPagesMax = std::uint64_t{1} << 27;

/// Of the file that has memory, behind the snapshot's name.
constexpr const char* kMemorySuffix = ".mem";

/// A file with a new name, into which a snapshot is written.
struct Job {
  const SnapshotFacts& facts;
  std::span<const SnapshotSection> sections;
  std::span<const MemoryLayer> layers;
  MergedMemory merged;
  std::vector<std::byte> page_table;
  PagesDone done;
  int file;
};

/// With exactly this mode.
Result<UnpublishedFile> create(const std::string& path, mode_t mode) {
  TRY_ASSIGN(UnpublishedFile file, UnpublishedFile::create(path, mode));
  if (::fchmod(file.fd(), mode) < 0) {
    return fail_errno(errno, path);
  }
  return file;
}

Result<> sync(const UnpublishedFile& file, const std::string& path) {
  if (::fsync(file.fd()) < 0) {
    return fail_errno(errno, path);
  }
  return {};
}

/// Memory from `offset` of `memory` on, the rest into the file, which has room for it up to `end`.
Result<> write_pages(const Job& job, int memory, std::uint64_t offset, std::uint64_t end) {
  const std::uint64_t places = job.merged.places;
  TRY_ASSIGN(const std::vector<std::uint64_t> checksums,
             write_merged(job.merged, job.layers, memory, offset, job.done));
  return write_snapshot_file(
      job.file, job.facts, job.sections,
      {.page_table = job.page_table, .page_checksums = std::as_bytes(std::span(checksums))},
      {.offset = end, .size = places * kImagePage, .pages = places});
}

Result<> write_packed(const Job& job) {
  const std::uint64_t places = job.merged.places;
  const std::uint64_t offset =
      snapshot_memory_offset(job.sections, job.page_table.size(), places * sizeof(std::uint64_t),
                             frame_table_size(places));
  TRY_ASSIGN(const CompressedMemory memory,
             write_compressed(job.merged, job.layers, job.file, offset, job.done));
  const std::vector<std::byte> frames = encode_frame_table(memory.frames);
  return write_snapshot_file(job.file, job.facts, job.sections,
                             {.page_table = job.page_table,
                              .page_checksums = std::as_bytes(std::span(memory.checksums)),
                              .frame_table = frames},
                             {.offset = offset, .size = memory.size, .pages = places});
}

std::unexpected<Error> taken(const std::string& path) {
  return fail(ErrorCode::kConfig,
              path +
                  ": is there already, and may be a snapshot's memory; wants it moved away, or "
                  "another name (--output FILE)");
}

/// Memory is there before the snapshot that wants it, and never in the place of another's.
Result<> store_split(const Job& job, mode_t mode, UnpublishedFile& file, const std::string& path) {
  const std::string memory_path = path + kMemorySuffix;
  if (::access(memory_path.c_str(), F_OK) == 0) {
    return taken(memory_path);
  }
  TRY_ASSIGN(UnpublishedFile memory, create(memory_path, mode));
  const std::uint64_t places = job.merged.places;
  if (::ftruncate(memory.fd(), static_cast<off_t>(places * kImagePage)) < 0) {
    return fail_errno(errno, memory_path);
  }
  TRY(write_pages(job, memory.fd(), 0,
                  snapshot_memory_offset(job.sections, job.page_table.size(),
                                         places * sizeof(std::uint64_t), 0)));
  TRY(sync(memory, memory_path));
  TRY(sync(file, path));
  TRY_ASSIGN(const bool published, memory.publish());
  if (!published) {
    return taken(memory_path);
  }
  Result<> replaced = file.replace();
  if (!replaced) {
    static_cast<void>(memory.remove_target());
  }
  return replaced;
}

}  // namespace

Result<> store_snapshot(const StoredSnapshot& snapshot, mode_t mode, const std::string& path) {
  const SnapshotFacts& facts = snapshot.facts;
  if (facts.memory_file && facts.pages > kRawPagesMax) {
    return fail(ErrorCode::kBadInput,
                fmt::format("{}: has memory of {} GiB; a raw file is made of {} GiB at most", path,
                            facts.pages >> 18, kRawPagesMax >> 18));
  }
  std::vector<SnapshotSection> sections(snapshot.sections.begin(), snapshot.sections.end());
  std::erase_if(sections,
                [](const SnapshotSection& section) { return section.tag == MemoryFileName::kTag; });
  SnapshotWriter names;
  if (facts.memory_file) {
    names.add(0, MemoryFileName{std::filesystem::path(path + kMemorySuffix).filename().string()});
    sections.push_back(names.sections().front());
  }
  TRY_ASSIGN(UnpublishedFile file, create(path, mode));
  MergedMemory merged =
      plan_merge(snapshot.layers, facts.pages, facts.memory_file ? Places::kRaw : Places::kDense);
  std::uint64_t data = 0;
  for (const PageRun& run : merged.runs) {
    data += run.kind == PageKind::kData ? run.count : 0;
  }
  Progress progress(path, data);
  std::vector<std::byte> table = encode_page_table(merged.runs);
  const Job job = {.facts = facts,
                   .sections = sections,
                   .layers = snapshot.layers,
                   .merged = std::move(merged),
                   .page_table = std::move(table),
                   .done = [&](std::uint64_t pages) { progress.add(pages); },
                   .file = file.fd()};
  if (facts.memory_file) {
    return store_split(job, mode, file, path);
  }
  const std::uint64_t offset = snapshot_memory_offset(facts.pages);
  TRY(facts.compressed ? write_packed(job) : write_pages(job, file.fd(), offset, offset));
  TRY(sync(file, path));
  return file.replace();
}

}  // namespace vireo
