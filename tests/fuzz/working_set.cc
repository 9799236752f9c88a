// SPDX-License-Identifier: Apache-2.0
// Fuzz target: a working set, first as it is and then with the checksum that its runs have.
#include "src/snapshot/working_set.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "src/base/checksum.h"
#include "src/base/error.h"

namespace vireo {
namespace {

constexpr std::uint64_t kPages = 1 << 20;
constexpr std::size_t kHeader = 40;

void look(std::span<const std::byte> bytes) {
  const Result<WorkingSet> set = decode_working_set(bytes, kPages);
  if (!set) {
    return;
  }
  std::uint64_t from = 0;
  for (const WorkingSetRun& run : set->runs) {
    CHECK(run.first >= from && run.count > 0 && run.count <= kPages - run.first);
    from = run.first + run.count;
  }
  const std::string again = encode_working_set(*set);
  CHECK(again.size() == bytes.size() && std::memcmp(again.data(), bytes.data(), bytes.size()) == 0);
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  vireo::look(bytes);
  if (size >= vireo::kHeader) {
    std::vector<std::byte> right(bytes.begin(), bytes.end());
    const std::uint64_t runs = (size - vireo::kHeader) / sizeof(vireo::WorkingSetRun);
    const std::uint64_t sum = vireo::checksum(bytes.subspan(vireo::kHeader));
    std::memcpy(&right[24], &runs, sizeof(runs));
    std::memcpy(&right[32], &sum, sizeof(sum));
    vireo::look(right);
  }
  return 0;
}
