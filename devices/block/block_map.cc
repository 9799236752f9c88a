// SPDX-License-Identifier: Apache-2.0
#include "devices/block/block_map.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

#include "src/base/endian.h"

namespace vireo {

namespace {

constexpr std::uint64_t kWordBits = 64;

/// The word that `block` has its bit in.
std::uint64_t word_at(std::span<const std::byte> bits, std::uint64_t block) {
  le64 word;
  std::memcpy(&word, bits.data() + block / kWordBits * sizeof(word), sizeof(word));
  return word;
}

}  // namespace

Result<BlockMap> BlockMap::create(std::uint64_t blocks, std::uint64_t most) {
  CHECK(blocks <= most);
  BlockMap map;
  map.blocks_ = blocks;
  TRY_ASSIGN(map.bits_,
             Mapping::create(pages_of(most) * kPageSize, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, "a block map"));
  return map;
}

Result<> BlockMap::load(int fd, std::uint64_t offset) {
  const auto end = static_cast<off_t>(offset + pages_of(blocks_) * kPageSize);
  for (auto at = static_cast<off_t>(offset); at < end;) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno != ENXIO) {
      return fail_errno(errno, "reading its map");
    }
    if (data < 0 || data >= end) {
      break;  // nothing but a hole
    }
    off_t hole = ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0) {
      return fail_errno(errno, "reading its map");
    }
    hole = std::min(hole, end);
    const auto from = static_cast<std::uint64_t>(data) - offset;
    TRY(read_full_at(fd, bits_.bytes().subspan(from, static_cast<std::size_t>(hole - data)),
                     static_cast<std::uint64_t>(data)));
    at = hole;
  }
  return {};
}

bool BlockMap::present(std::uint64_t block) const {
  return (word_at(bits_.bytes(), block) >> (block % kWordBits) & 1) != 0;
}

BlockMap::Run BlockMap::run(std::uint64_t first, std::uint64_t most) const {
  const bool wanted = present(first);
  std::uint64_t count = 0;
  while (count < most) {
    const std::uint64_t block = first + count;
    const std::uint64_t word = word_at(bits_.bytes(), block);
    const std::uint64_t rest = (wanted ? ~word : word) >> (block % kWordBits);
    // Zero bits of `rest` go on with the run; those shifted in are of no block.
    const std::uint64_t left = kWordBits - block % kWordBits;
    const std::uint64_t here =
        std::min<std::uint64_t>(static_cast<std::uint64_t>(std::countr_zero(rest)), left);
    count += here;
    if (here < left) {
      break;
    }
  }
  return {.present = wanted, .count = std::min(count, most)};
}

std::uint64_t BlockMap::count_present() const {
  std::uint64_t count = 0;
  for (std::uint64_t block = 0; block < blocks_;) {
    const Run found = run(block, blocks_ - block);
    count += found.present ? found.count : 0;
    block += found.count;
  }
  return count;
}

void BlockMap::set(std::uint64_t first, std::uint64_t count) {
  CHECK(first + count <= blocks_);
  for (std::uint64_t block = first; block < first + count; ++block) {
    std::byte& bits = bits_.bytes()[block / 8];
    const std::byte bit = std::byte{1} << (block % 8);
    if ((bits & bit) == std::byte{0}) {
      bits |= bit;
      const std::uint64_t number = block / kBlocksOfPage;
      if (changed_.empty() ||
          (changed_.back() != number && std::ranges::find(changed_, number) == changed_.end())) {
        changed_.push_back(number);
      }
    }
  }
}

void BlockMap::grow(std::uint64_t blocks) {
  CHECK(blocks >= blocks_ && pages_of(blocks) * kPageSize <= bits_.size());
  blocks_ = blocks;
}

std::vector<BlockMap::Page> BlockMap::take_changed() {
  std::vector<Page> pages;
  for (const std::uint64_t number : std::exchange(changed_, {})) {
    const auto bytes = page(number);
    pages.push_back({.number = number, .bytes = {bytes.begin(), bytes.end()}});
  }
  return pages;
}

}  // namespace vireo
