// SPDX-License-Identifier: Apache-2.0
// A set of pages of guest memory, 4 KiB each, counted through its regions in their order. The words
// are those of KVM's dirty log: bit n of word w is page 64 * w + n.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vireo {

class PageSet {
 public:
  static constexpr std::size_t kBits = 64;

  PageSet() = default;
  explicit PageSet(std::uint64_t pages) : pages_(pages), words_((pages + kBits - 1) / kBits) {}

  std::uint64_t pages() const { return pages_; }
  bool contains(std::uint64_t page) const {
    return (words_[page / kBits] >> (page % kBits) & 1U) != 0;
  }
  void add(std::uint64_t page) { words_[page / kBits] |= std::uint64_t{1} << (page % kBits); }
  void add_range(std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t page = first; page < first + count; ++page) {
      if (page % kBits == 0 && first + count - page >= kBits) {
        words_[page / kBits] = ~std::uint64_t{0};
        page += kBits - 1;
      } else {
        add(page);
      }
    }
  }
  /// Of as many pages.
  void add_all_of(const PageSet& other) {
    for (std::size_t i = 0; i < words_.size(); ++i) {
      words_[i] |= other.words_[i];
    }
  }
  void clear() { words_.assign(words_.size(), 0); }
  std::uint64_t count() const {
    std::uint64_t count = 0;
    for (const std::uint64_t word : words_) {
      count += static_cast<std::uint64_t>(std::popcount(word));
    }
    return count;
  }
  std::span<std::uint64_t> words() { return words_; }
  std::span<const std::uint64_t> words() const { return words_; }

  /// Calls `visit(page)` for those in [first, first + count), ascending.
  template <typename Visit>
  void for_each(std::uint64_t first, std::uint64_t count, Visit visit) const {
    const std::uint64_t end = first + count;
    for (std::uint64_t base = first / kBits * kBits; base < end; base += kBits) {
      std::uint64_t word = words_[base / kBits];
      if (base < first) {
        word &= ~std::uint64_t{0} << (first - base);
      }
      if (end - base < kBits) {
        word &= (std::uint64_t{1} << (end - base)) - 1;
      }
      for (; word != 0; word &= word - 1) {
        visit(base + static_cast<std::uint64_t>(std::countr_zero(word)));
      }
    }
  }

 private:
  std::uint64_t pages_ = 0;
  std::vector<std::uint64_t> words_;
};

}  // namespace vireo
