// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/msix.h"

#include <algorithm>
#include <array>
#include <bit>
#include <string_view>
#include <utility>

#include <linux/pci_regs.h>

#include <fmt/core.h>

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

/// What a guest has made of it, beside the control word.
struct MsixState {
  static constexpr std::string_view kTag = "msix";
  static constexpr std::uint32_t kVersion = 1;

  struct Vector {
    std::uint64_t address = 0;
    std::uint32_t data = 0;
    bool masked = true;
    bool pending = false;
    void fields(auto& ar) { ar(address, data, masked, pending); }
  };
  std::vector<Vector> vectors;

  void fields(auto& ar) { ar.list(vectors, kMaxVectors); }
};

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
    set_table_word(index, PCI_MSIX_ENTRY_VECTOR_CTRL, PCI_MSIX_ENTRY_CTRL_MASKBIT);
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

Msix::Gate Msix::gate_for(std::uint16_t control, bool masked) {
  if ((control & PCI_MSIX_FLAGS_ENABLE) == 0) {
    return Gate::kOff;
  }
  return masked || (control & PCI_MSIX_FLAGS_MASKALL) != 0 ? Gate::kMasked : Gate::kOpen;
}

/// Brings the gate of a vector in line with the table and the control word.
void Msix::update(unsigned index) {
  Vector& vector = vectors_[index];
  const Gate gate = gate_for(control_, is_masked(index));
  if (gate != Gate::kOpen) {
    if (vector.gate.exchange(gate) == Gate::kOpen) {
      router_.route(index, vector.address, vector.data, true);
    }
    if (gate == Gate::kOff) {
      vector.pending = false;
    }
    return;
  }
  const std::uint64_t address = address_of(index);
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

void Msix::set_table_word(unsigned index, unsigned field, std::uint32_t value) {
  const auto bytes = std::bit_cast<std::array<std::byte, sizeof(le32)>>(le32(value));
  const std::size_t at = std::size_t{index} * PCI_MSIX_ENTRY_SIZE + field;
  std::ranges::copy(bytes, std::span(table_).subspan(at).begin());
}

std::uint64_t Msix::address_of(unsigned index) const {
  return std::uint64_t{table_word(index, PCI_MSIX_ENTRY_UPPER_ADDR)} << 32 |
         table_word(index, PCI_MSIX_ENTRY_LOWER_ADDR);
}

bool Msix::is_masked(unsigned index) const {
  return (table_word(index, PCI_MSIX_ENTRY_VECTOR_CTRL) & PCI_MSIX_ENTRY_CTRL_MASKBIT) != 0;
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

// Snapshots
// --------------------------------------------------------------------------------------

void Msix::save(SnapshotWriter& writer, unsigned slot) {
  const std::scoped_lock lock(mutex_);
  MsixState state;
  for (unsigned index = 0; index < vectors(); ++index) {
    state.vectors.push_back({.address = address_of(index),
                             .data = table_word(index, PCI_MSIX_ENTRY_DATA),
                             .masked = is_masked(index),
                             .pending = vectors_[index].pending.load()});
  }
  writer.add(slot, std::move(state));
}

Result<> Msix::restore(SnapshotReader& reader, unsigned slot, std::uint16_t control) {
  TRY_ASSIGN(const MsixState state, reader.take<MsixState>(slot));
  if (state.vectors.size() != vectors_.size()) {
    return bad_section<MsixState>(slot, fmt::format("has {} vectors, and the function here {}",
                                                    state.vectors.size(), vectors_.size()));
  }
  for (const MsixState::Vector& vector : state.vectors) {
    if (vector.address % sizeof(le32) != 0) {
      return bad_section<MsixState>(slot, "has a vector that sends to an odd address");
    }
    if (vector.pending && gate_for(control, vector.masked) != Gate::kMasked) {
      return bad_section<MsixState>(slot, "has a vector that waits behind no mask");
    }
  }
  const std::scoped_lock lock(mutex_);
  control_ = control;
  for (unsigned index = 0; index < vectors(); ++index) {
    const MsixState::Vector& vector = state.vectors[index];
    set_table_word(index, PCI_MSIX_ENTRY_LOWER_ADDR, static_cast<std::uint32_t>(vector.address));
    set_table_word(index, PCI_MSIX_ENTRY_UPPER_ADDR,
                   static_cast<std::uint32_t>(vector.address >> 32));
    set_table_word(index, PCI_MSIX_ENTRY_DATA, vector.data);
    set_table_word(index, PCI_MSIX_ENTRY_VECTOR_CTRL,
                   vector.masked ? PCI_MSIX_ENTRY_CTRL_MASKBIT : 0);
    update(index);
    vectors_[index].pending = vector.pending;
    if (vectors_[index].gate.load() == Gate::kOpen) {
      // One that the host had not delivered when the controllers were saved is in neither of them.
      vectors_[index].interrupt->raise();
    }
  }
  return {};
}

}  // namespace vireo
