// SPDX-License-Identifier: Apache-2.0
#include "src/memory/page_table.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include <fmt/core.h>

#include "src/base/endian.h"

namespace vireo {

namespace {

struct WireRun {
  le32 kind;
  le32 count;
  le64 position;
};
static_assert(sizeof(WireRun) == 16 && alignof(WireRun) == 1);

std::unexpected<Error> bad_run(std::size_t index, const std::string& what) {
  return fail(ErrorCode::kBadInput, fmt::format("page table: run {} {}", index, what));
}

}  // namespace

std::vector<std::byte> encode_page_table(std::span<const PageRun> runs) {
  std::vector<std::byte> bytes(runs.size() * sizeof(WireRun));
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const WireRun wire = {.kind = std::to_underlying(runs[i].kind),
                          .count = runs[i].count,
                          .position = runs[i].position};
    std::memcpy(&bytes[i * sizeof(WireRun)], &wire, sizeof(wire));
  }
  return bytes;
}

Result<std::vector<PageRun>> decode_page_table(std::span<const std::byte> bytes,
                                               std::uint64_t pages, std::uint64_t places) {
  if (bytes.size() % sizeof(WireRun) != 0) {
    return fail(ErrorCode::kBadInput, fmt::format("page table: has {} bytes", bytes.size()));
  }
  std::vector<PageRun> runs(bytes.size() / sizeof(WireRun));
  std::uint64_t covered = 0;
  std::uint64_t data = 0;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    WireRun wire;
    std::memcpy(&wire, &bytes[i * sizeof(wire)], sizeof(wire));
    const std::uint64_t position = wire.position;
    const std::uint64_t count = wire.count;
    if (wire.kind > std::to_underlying(PageKind::kData)) {
      return bad_run(i, fmt::format("is of kind {}", std::uint32_t{wire.kind}));
    }
    const auto kind = static_cast<PageKind>(std::uint32_t{wire.kind});
    if (count == 0 || count > pages - covered) {
      return bad_run(i, fmt::format("has {} pages, where {} are left", count, pages - covered));
    }
    const bool lies_within =
        kind == PageKind::kData ? position <= places && count <= places - position : position == 0;
    if (!lies_within) {
      return bad_run(i, fmt::format("has {} pages at place {} of {}", count, position, places));
    }
    covered += count;
    data += kind == PageKind::kData ? count : 0;
    runs[i] = {.kind = kind, .count = wire.count, .position = position};
  }
  if (covered != pages) {
    return fail(ErrorCode::kBadInput,
                fmt::format("page table: has {} pages of {}", covered, pages));
  }
  if (data > places) {
    return fail(ErrorCode::kBadInput,
                fmt::format("page table: has {} pages of data at {} places", data, places));
  }
  return runs;
}

void add_run(std::vector<PageRun>& runs, PageRun run) {
  constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();
  if (!runs.empty()) {
    PageRun& last = runs.back();
    const bool is_data = run.kind == PageKind::kData;
    if (last.kind == run.kind && (!is_data || last.position + last.count == run.position)) {
      const std::uint32_t taken = std::min(run.count, kMost - last.count);
      last.count += taken;
      run.count -= taken;
      run.position += is_data ? taken : 0;
    }
  }
  if (run.count > 0) {
    runs.push_back(run);
  }
}

}  // namespace vireo
