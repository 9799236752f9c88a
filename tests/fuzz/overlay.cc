// SPDX-License-Identifier: Apache-2.0
// Fuzz target: an overlay file of any content. Its header is read as it lies there, and once more
// with its checksum right, so that the numbers behind it are looked at; one that is accepted is
// opened, and its map read to the end.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "devices/block/overlay_file.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "tests/fuzz/fuzz_input.h"

namespace vireo {
namespace {

/// Larger ones are only looked at.
constexpr std::uint64_t kOpenedMax = std::uint64_t{64} << 20;

void check_sound(const OverlayHeader& header) {
  CHECK(header.size > 0 && header.size % 512 == 0);
  const std::uint64_t blocks = (header.size + kOverlayBlock - 1) / kOverlayBlock;
  CHECK(header.map_size * 8 >= blocks);
  CHECK(header.map_offset + header.map_size <= header.data_offset);
  CHECK(header.data_offset + header.size > header.data_offset);
}

void open_and_read(const OverlayHeaderPage& page, const OverlayHeader& header, FuzzInput& input) {
  const UniqueFd fd(::memfd_create("overlay", 0));
  CHECK(::pwrite(fd.get(), page.data(), page.size(), 0) == static_cast<ssize_t>(page.size()));
  std::vector<std::byte> map(512);
  input.fill(map);
  CHECK(::pwrite(fd.get(), map.data(), map.size(), static_cast<off_t>(header.map_offset)) ==
        static_cast<ssize_t>(map.size()));
  const std::uint64_t cut = input.byte() % 4 == 0 ? input.number(3) * 512 : 0;
  const std::uint64_t end = header.data_offset + header.size;
  CHECK(::ftruncate(fd.get(), static_cast<off_t>(end - std::min(end, cut))) == 0);
  const Result<OverlayFile> overlay =
      open_overlay("/proc/self/fd/" + std::to_string(fd.get()), false);
  if (!overlay) {
    return;
  }
  CHECK(cut == 0 || overlay->file.size >= end);
  std::uint64_t present = 0;
  for (std::uint64_t block = 0; block < overlay->map.blocks();) {
    const BlockMap::Run run = overlay->map.run(block, overlay->map.blocks() - block);
    CHECK(run.count > 0 && run.count <= overlay->map.blocks() - block);
    CHECK(overlay->map.present(block) == run.present);
    present += run.present ? run.count : 0;
    block += run.count;
  }
  CHECK(present == overlay->map.count_present());
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vireo;  // NOLINT(google-build-using-namespace)
  OverlayHeaderPage page = {};
  std::ranges::copy(std::as_bytes(std::span(data, std::min(size, page.size()))), page.begin());
  if (const Result<OverlayHeader> header = decode_overlay_header(page)) {
    check_sound(*header);
  }
  FuzzInput input(data, size);
  const OverlayHeader wanted = {.sequence = input.number(1),
                                .size = input.number(7),
                                .map_offset = 8192 + input.number(1) / 200,
                                .map_size = input.number(6),
                                .data_offset = input.number(6),
                                .cloned = (input.byte() & 1U) != 0,
                                .base_size = input.number(7),
                                .base_mtime_ns = 0,
                                .base_path = std::string(input.byte(), 'b')};
  page = encode_overlay_header(wanted);
  if (const Result<OverlayHeader> header = decode_overlay_header(page)) {
    check_sound(*header);
    CHECK(header->size == wanted.size && header->base_path == wanted.base_path);
    if (header->data_offset + header->size <= kOpenedMax) {
      open_and_read(page, *header, input);
    }
  }
  return 0;
}
