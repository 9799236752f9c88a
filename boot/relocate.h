// SPDX-License-Identifier: Apache-2.0
// The relocation table of an x86-64 Linux kernel, and moving its virtual base by it (KASLR).
//
// Each entry is the virtual address, as linked and cut to 32 bits, of a place that holds an
// address. Read backwards from its end, the table is
//
//   32-bit places, 0, [places of 32-bit values that count backwards, 0,] 64-bit places, 0
//
// (the middle group is gone from newer kernels). The physical base needs no entry: the kernel
// computes it from where it finds itself running.
//
// Hostile input: a table counts only when it fits together to the last word and every place lies
// inside the image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/error.h"

namespace vireo {

class RelocationTable {
 public:
  /// Checks the words of a table for an image of `image_size` bytes whose first byte was linked at
  /// the virtual address `virtual_start`. kBadInput where they are no such table.
  static Result<RelocationTable> create(std::vector<std::uint32_t> words,
                                        std::uint64_t virtual_start, std::uint64_t image_size);

  // The groups are views of words_: they stay right when it is moved, not when it is copied.
  RelocationTable(RelocationTable&&) = default;
  RelocationTable& operator=(RelocationTable&&) = default;
  RelocationTable(const RelocationTable&) = delete;
  RelocationTable& operator=(const RelocationTable&) = delete;
  ~RelocationTable() = default;

  /// Moves the virtual base of `image` (of the size given to create) by `delta` bytes.
  void apply(std::span<std::byte> image, std::uint64_t delta) const;

  std::size_t count() const { return absolute32_.size() + inverse32_.size() + absolute64_.size(); }

 private:
  explicit RelocationTable(std::vector<std::uint32_t> words) : words_(std::move(words)) {}

  std::vector<std::uint32_t> words_;
  std::uint32_t first_place_ = 0;  ///< the value of an entry for offset 0
  std::uint64_t image_size_ = 0;
  std::span<const std::uint32_t> absolute32_;
  std::span<const std::uint32_t> inverse32_;
  std::span<const std::uint32_t> absolute64_;
};

}  // namespace vireo
