// SPDX-License-Identifier: Apache-2.0
#include "boot/cache_entry.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <unistd.h>
#include <xxhash.h>

#include "src/base/fd.h"

namespace vireo {

namespace {

constexpr std::uint64_t kPageSize = 4096;
constexpr std::size_t kChunk = std::size_t{1} << 20;
constexpr std::array<char, 8> kMagic = {'V', 'I', 'R', 'E', 'O', 'K', 'R', 'N'};
/// Raised whenever the layout below changes, or what read_elf_kernel finds in a kernel.
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kExtentsMax = 128;
/// A hole of fewer zero bytes than this is cheaper to copy than to leave out.
constexpr std::uint64_t kHoleMin = 16 * kPageSize;

struct Header {
  std::array<char, 8> magic;
  std::uint64_t checksum;  ///< of the rest of the block
  std::uint32_t version;
  std::uint32_t extent_count;
  ContentHash content;
  std::uint64_t file_size;
  std::int64_t mtime_s;
  std::uint64_t entry;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t alignment;
  std::uint64_t virtual_start;
  std::uint64_t cmdline_max;
  std::uint64_t initramfs_max;
  std::uint64_t relocations_offset;
  std::uint64_t relocations_size;
  std::uint32_t protocol;
  std::uint32_t setup_header_size;
  std::array<std::byte, kSetupHeaderMax + 1> setup_header;
};

struct Block {
  Header header;
  std::array<Extent, kExtentsMax> extents;
};
static_assert(std::is_trivially_copyable_v<Block> && sizeof(Block) <= kPageSize);
static_assert(std::has_unique_object_representations_v<Block>, "padding would be uninitialised");

std::uint64_t checksum_of(const Block& block) {
  const auto bytes = std::as_bytes(std::span(&block, 1)).subspan(offsetof(Header, version));
  return XXH3_64bits(bytes.data(), bytes.size());
}

bool is_zero(std::span<const std::byte> bytes) {
  return bytes.empty() || (bytes[0] == std::byte{0} &&
                           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

/// Appends what is not zero of one extent after the other to a file.
class ExtentWriter {
 public:
  ExtentWriter(int fd, Block& block) : fd_(fd), block_(block) {}

  Result<> add(const Extent& extent, const ByteSource& source) {
    std::vector<std::byte> buffer(kChunk);
    for (std::uint64_t done = 0; done < extent.size;) {
      // Chunks end where guest pages end, so that zero pages are seen as such.
      const std::uint64_t address = extent.address + done;
      const std::uint64_t size = std::min(extent.size - done, kChunk - address % kPageSize);
      const auto chunk = std::span(buffer).first(size);
      TRY(source.read(extent.offset + done, chunk));
      TRY(add_pages(address, chunk));
      done += size;
    }
    return {};
  }

  std::uint64_t end() const { return end_; }

 private:
  /// Appends each run of pages that hold something.
  Result<> add_pages(std::uint64_t address, std::span<const std::byte> bytes) {
    std::uint64_t run = 0;  // bytes of the run that ends where `at` stands
    std::uint64_t at = 0;
    while (at < bytes.size()) {
      const std::uint64_t size =
          std::min(bytes.size() - at, kPageSize - (address + at) % kPageSize);
      if (!is_zero(bytes.subspan(at, size))) {
        run += size;
      } else {
        TRY(append(address + at - run, bytes.subspan(at - run, run)));
        run = 0;
      }
      at += size;
    }
    return append(address + at - run, bytes.subspan(at - run, run));
  }

  Result<> append(std::uint64_t address, std::span<const std::byte> bytes) {
    if (bytes.empty()) {
      return {};
    }
    std::uint32_t& count = block_.header.extent_count;
    Extent* last = count == 0 ? nullptr : &block_.extents[count - 1];
    const bool near = last != nullptr && address - (last->address + last->size) < kHoleMin;
    if (last == nullptr || (!near && count < kExtentsMax)) {
      last = &block_.extents[count++];
      *last = {.address = address, .size = 0, .offset = end_ + (address - end_) % kPageSize};
    }
    // The gap, if any, is never written and so reads as zeros.
    end_ = last->offset + (address - last->address);
    last->size = address + bytes.size() - last->address;
    return write_at_end(bytes);
  }

  Result<> write_at_end(std::span<const std::byte> bytes) {
    if (::lseek(fd_, static_cast<off_t>(end_), SEEK_SET) < 0) {
      return fail_errno(errno, "lseek");
    }
    TRY(write_full(fd_, bytes));
    end_ += bytes.size();
    return {};
  }

  int fd_;
  Block& block_;
  std::uint64_t end_ = kPageSize;
};

/// Copies the relocation table behind the extents; returns the size of the file.
Result<std::uint64_t> write_relocations(int fd, const KernelImage& kernel, const ByteSource& source,
                                        std::uint64_t offset, Header& header) {
  std::vector<std::byte> table(kernel.relocations_size);
  TRY(source.read(kernel.relocations_offset, table));
  if (::lseek(fd, static_cast<off_t>(offset), SEEK_SET) < 0) {
    return fail_errno(errno, "lseek");
  }
  TRY(write_full(fd, table));
  header.relocations_offset = offset;
  header.relocations_size = table.size();
  return offset + table.size();
}

bool is_whole(const Block& block, const ByteSource& source) {
  const Header& header = block.header;
  if (header.magic != kMagic || header.version != kVersion ||
      header.checksum != checksum_of(block) || header.file_size != source.size() ||
      header.extent_count > kExtentsMax || header.setup_header_size > kSetupHeaderMax ||
      header.start > header.end || header.end - header.start > kKernelSizeMax ||
      header.protocol > static_cast<std::uint32_t>(BootProtocol::kPvh) || header.alignment == 0 ||
      !source.contains(header.relocations_offset, header.relocations_size)) {
    return false;
  }
  std::uint64_t end = header.start;
  for (const Extent& extent : std::span(block.extents).first(header.extent_count)) {
    if (extent.address < end || extent.address > header.end ||
        extent.size > header.end - extent.address || !source.contains(extent.offset, extent.size)) {
      return false;
    }
    end = extent.address + extent.size;
  }
  return true;
}

}  // namespace

Result<> write_cache_entry(int fd, const KernelImage& kernel, const ByteSource& source,
                           const ContentHash& content, std::int64_t mtime_s) {
  Block block = {};
  Header& header = block.header;
  ExtentWriter writer(fd, block);
  for (const Extent& extent : kernel.extents) {
    TRY(writer.add(extent, source));
  }
  TRY_ASSIGN(header.file_size, write_relocations(fd, kernel, source, writer.end(), header));
  header.magic = kMagic;
  header.version = kVersion;
  header.content = content;
  header.mtime_s = mtime_s;
  header.entry = kernel.entry;
  header.start = kernel.start;
  header.end = kernel.end;
  header.alignment = kernel.alignment;
  header.virtual_start = kernel.virtual_start;
  header.cmdline_max = kernel.cmdline_max;
  header.initramfs_max = kernel.initramfs_max;
  header.protocol = static_cast<std::uint32_t>(kernel.protocol);
  header.setup_header_size = static_cast<std::uint32_t>(kernel.setup_header.size());
  std::ranges::copy(kernel.setup_header, header.setup_header.begin());
  header.checksum = checksum_of(block);
  if (::lseek(fd, 0, SEEK_SET) < 0) {
    return fail_errno(errno, "lseek");
  }
  return write_full(fd, std::as_bytes(std::span(&block, 1)));
}

std::optional<KernelImage> read_cache_entry(const ByteSource& source, const ContentHash& content,
                                            std::int64_t mtime_s) {
  const auto block = source.read_object<Block>(0);
  if (!block || !is_whole(*block, source)) {
    return std::nullopt;
  }
  const Header& header = block->header;
  if (header.content != content || header.mtime_s != mtime_s) {
    return std::nullopt;
  }
  KernelImage kernel;
  kernel.protocol = static_cast<BootProtocol>(header.protocol);
  kernel.entry = header.entry;
  kernel.start = header.start;
  kernel.end = header.end;
  kernel.alignment = header.alignment;
  kernel.virtual_start = header.virtual_start;
  kernel.relocations_offset = header.relocations_offset;
  kernel.relocations_size = header.relocations_size;
  kernel.cmdline_max = header.cmdline_max;
  kernel.initramfs_max = header.initramfs_max;
  kernel.setup_header.assign(header.setup_header.begin(),
                             header.setup_header.begin() + header.setup_header_size);
  kernel.extents.assign(block->extents.begin(), block->extents.begin() + header.extent_count);
  return kernel;
}

ContentHash hash_content(std::span<const std::byte> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {.low = hash.low64, .high = hash.high64};
}

}  // namespace vireo
