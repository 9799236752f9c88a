// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot/working_set.h"

#include <bit>
#include <cstring>

#include "src/base/checksum.h"

namespace vireo {

namespace {

static_assert(std::endian::native == std::endian::little);
constexpr std::array<char, 8> kMagic = {'V', 'I', 'R', 'E', 'O', 'W', 'S', '1'};

struct Header {
  std::array<char, 8> magic = kMagic;
  SnapshotUuid snapshot = {};
  std::uint64_t runs = 0;
  std::uint64_t checksum = 0;  // of these
};
static_assert(sizeof(Header) == 40);

std::unexpected<Error> damaged(const char* what) {
  return fail(ErrorCode::kBadInput, std::string("working set: ") + what);
}

}  // namespace

std::string working_set_path(const std::string& snapshot) {
  return snapshot + ".ws";
}

std::string encode_working_set(const WorkingSet& set) {
  const auto runs = std::as_bytes(std::span(set.runs));
  const Header header = {
      .snapshot = set.snapshot, .runs = set.runs.size(), .checksum = checksum(runs)};
  std::string text(sizeof(header) + runs.size(), '\0');
  std::memcpy(text.data(), &header, sizeof(header));
  if (!runs.empty()) {
    std::memcpy(text.data() + sizeof(header), runs.data(), runs.size());
  }
  return text;
}

Result<WorkingSet> decode_working_set(std::span<const std::byte> bytes, std::uint64_t pages) {
  Header header;
  if (bytes.size() < sizeof(header)) {
    return damaged("is truncated");
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kMagic) {
    return damaged("is none, or of a later version");
  }
  const std::span<const std::byte> rest = bytes.subspan(sizeof(header));
  if (rest.size() % sizeof(WorkingSetRun) != 0 ||
      header.runs != rest.size() / sizeof(WorkingSetRun) || header.checksum != checksum(rest)) {
    return damaged("is damaged: its checksum is another one");
  }
  WorkingSet set = {.snapshot = header.snapshot,
                    .runs = std::vector<WorkingSetRun>(rest.size() / sizeof(WorkingSetRun))};
  if (!rest.empty()) {
    std::memcpy(set.runs.data(), rest.data(), rest.size());
  }
  std::uint64_t from = 0;
  for (const WorkingSetRun& run : set.runs) {
    if (run.first < from || run.first >= pages || run.count == 0 || run.count > pages - run.first) {
      return damaged("has pages that the snapshot has not, or not in their order");
    }
    from = run.first + run.count;
  }
  return set;
}

}  // namespace vireo
