// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/msix.h"

#include <algorithm>
#include <array>
#include <bit>

#include <linux/pci_regs.h>

#include "src/base/endian.h"

namespace vireo {

namespace {

constexpr unsigned kMaxVectors = PCI_MSIX_FLAGS_QSIZE + 1;
/// So that what lies beside the table and the pending bits has other pages.
constexpr std::uint64_t kMinBarSize = 0x1000;

/// What the guest may write of a table entry: the address is of whole dwords, and of the vector
/// control only the mask is not reserved.
constexpr std::byte writable_bits(std::uint64_t offset_in_entry) {
  if (offset_in_entry == PCI_MSIX_ENTRY_LOWER_ADDR) {
    return std::byte{0xfc};
  }
  if (offset_in_entry == PCI_MSIX_ENTRY_VECTOR_CTRL) {
    return std::byte{PCI_MSIX_ENTRY_CTRL_MASKBIT};
  }
  return offset_in_entry < PCI_MSIX_ENTRY_VECTOR_CTRL ? std::byte{0xff} : std::byte{0};
}

}  // namespace

Result<std::unique_ptr<Msix>> Msix::create(unsigned vectors, MsiRouter& router) {
  CHECK(vectors > 0 && vectors <= kMaxVectors);
  auto msix = std::unique_ptr<Msix>(new Msix(vectors, router));
  for (unsigned index = 0; index < vectors; ++index) {
    TRY_ASSIGN(msix->vectors_[index].interrupt, router.create_vector(index));
  }
  return msix;
}

Msix::Msix(unsigned vectors, MsiRouter& router)
    : router_(router), vectors_(vectors), table_(std::size_t{vectors} * PCI_MSIX_ENTRY_SIZE) {
  mask_all();
}

/// §6.8.2.9: every vector is masked after a reset.
void Msix::mask_all() {
  std::ranges::fill(table_, std::byte{0});
  for (unsigned index = 0; index < vectors(); ++index) {
    table_[std::size_t{index} * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL] =
        std::byte{PCI_MSIX_ENTRY_CTRL_MASKBIT};
  }
}

void Msix::power_cycle() {
  set_control(0);
  const std::scoped_lock lock(mutex_);
  mask_all();
}

std::uint64_t Msix::bar_size() const {
  return std::max(kMinBarSize, std::bit_ceil(2 * std::uint64_t{table_.size()}));
}

void Msix::raise(unsigned index) {
  Vector& vector = vectors_[index];
  switch (vector.gate.load()) {
    case Gate::kOff:
      break;
    case Gate::kOpen:
      vector.interrupt->raise();
      break;
    case Gate::kMasked:
      // The gate may open meanwhile: either this thread sees that, or update() sees the bit. Both
      // orders are sequentially consistent, or both could miss it.
      vector.pending = true;
      if (vector.gate.load() == Gate::kOpen && vector.pending.exchange(false)) {
        vector.interrupt->raise();
      }
      break;
  }
}

void Msix::set_control(std::uint16_t control) {
  const std::scoped_lock lock(mutex_);
  control_ = control;
  for (unsigned index = 0; index < vectors(); ++index) {
    update(index);
  }
}

/// Brings the gate of a vector in line with the table and the control word.
void Msix::update(unsigned index) {
  Vector& vector = vectors_[index];
  const bool enabled = (control_ & PCI_MSIX_FLAGS_ENABLE) != 0;
  const std::uint32_t vector_control = table_word(index, PCI_MSIX_ENTRY_VECTOR_CTRL);
  if (!enabled || (control_ & PCI_MSIX_FLAGS_MASKALL) != 0 ||
      (vector_control & PCI_MSIX_ENTRY_CTRL_MASKBIT) != 0) {
    if (vector.gate.exchange(enabled ? Gate::kMasked : Gate::kOff) == Gate::kOpen) {
      router_.route(index, vector.address, vector.data, true);
    }
    if (!enabled) {
      vector.pending = false;
    }
    return;
  }
  const std::uint64_t address = std::uint64_t{table_word(index, PCI_MSIX_ENTRY_UPPER_ADDR)} << 32 |
                                table_word(index, PCI_MSIX_ENTRY_LOWER_ADDR);
  const std::uint32_t data = table_word(index, PCI_MSIX_ENTRY_DATA);
  // A new route is dear; what changes behind a mask is told once, at its end.
  if (vector.gate.load() != Gate::kOpen || vector.address != address || vector.data != data) {
    vector.address = address;
    vector.data = data;
    router_.route(index, address, data, false);
  }
  vector.gate = Gate::kOpen;
  if (vector.pending.exchange(false)) {
    vector.interrupt->raise();
  }
}

std::uint32_t Msix::table_word(unsigned index, unsigned field) const {
  std::array<std::byte, sizeof(le32)> bytes;
  const std::size_t at = std::size_t{index} * PCI_MSIX_ENTRY_SIZE + field;
  std::ranges::copy(std::span(table_).subspan(at, bytes.size()), bytes.begin());
  return std::bit_cast<le32>(bytes);
}

std::byte Msix::byte_at(std::uint64_t offset) const {
  if (offset < table_.size()) {
    return table_[offset];
  }
  std::byte bits{0};
  for (std::uint64_t bit = 0; bit < 8 && offset >= pba_offset(); ++bit) {
    const std::uint64_t index = (offset - pba_offset()) * 8 + bit;
    if (index < vectors_.size() && vectors_[index].pending.load()) {
      bits |= std::byte{1} << bit;
    }
  }
  return bits;
}

// §6.8.2: software uses aligned accesses of 4 or 8 bytes. Others do what they do to memory.

void Msix::read(std::uint64_t offset, std::span<std::byte> data) {
  const std::scoped_lock lock(mutex_);
  for (std::byte& byte : data) {
    byte = byte_at(offset++);
  }
}

void Msix::write(std::uint64_t offset, std::span<const std::byte> data) {
  const std::scoped_lock lock(mutex_);
  std::uint64_t end = offset;
  for (const std::byte byte : data) {
    if (end < table_.size()) {
      table_[end] = byte & writable_bits(end % PCI_MSIX_ENTRY_SIZE);
      ++end;
    }
  }
  for (std::uint64_t at = offset; at < end; at += PCI_MSIX_ENTRY_SIZE - at % PCI_MSIX_ENTRY_SIZE) {
    update(static_cast<unsigned>(at / PCI_MSIX_ENTRY_SIZE));
  }
}

}  // namespace vireo
