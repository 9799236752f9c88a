// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/function.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include <fmt/core.h>

#include "src/base/endian.h"

namespace vireo {

namespace {

constexpr unsigned kWord = 4;
constexpr std::uint64_t kPageSize = 4096;

constexpr unsigned bar_offset(unsigned index) {
  return PCI_BASE_ADDRESS_0 + kWord * index;
}

/// Whether a write at `offset` can change what the BARs answer to.
bool concerns_bars(unsigned offset) {
  return offset / kWord == PCI_COMMAND / kWord ||
         (offset >= PCI_BASE_ADDRESS_0 && offset < bar_offset(PCI_STD_NUM_BARS));
}

/// A configuration space as its guest reads it.
struct PciFunctionState {
  static constexpr std::string_view kTag = "pci";
  static constexpr std::uint32_t kVersion = 1;
  std::array<std::byte, PCI_CFG_SPACE_SIZE> space = {};
  void fields(auto& ar) { ar(space); }
};

}  // namespace

template <typename T>
void PciFunction::set(unsigned offset, T value) {
  const auto bytes = std::bit_cast<std::array<std::byte, sizeof(T)>>(LittleEndian<T>(value));
  std::ranges::copy(bytes, std::span(space_).subspan(offset).begin());
}

template <typename T>
T PciFunction::get(unsigned offset) const {
  std::array<std::byte, sizeof(T)> bytes;
  std::ranges::copy(std::span(space_).subspan(offset, sizeof(T)), bytes.begin());
  return std::bit_cast<LittleEndian<T>>(bytes);
}

// Building it
// ------------------------------------------------------------------------------------

PciFunction::PciFunction(const Identity& identity) {
  set(PCI_VENDOR_ID, identity.vendor);
  set(PCI_DEVICE_ID, identity.device);
  set(PCI_REVISION_ID, identity.revision);
  set(PCI_CLASS_DEVICE, identity.class_code);
  set(PCI_HEADER_TYPE, std::uint8_t{PCI_HEADER_TYPE_NORMAL});
  set(PCI_SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor);
  set(PCI_SUBSYSTEM_ID, identity.subsystem);
  writable_[PCI_COMMAND] = std::byte{PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER};
  writable_[PCI_COMMAND + 1] = std::byte{PCI_COMMAND_INTX_DISABLE >> 8};
  // Notes of the guest to itself.
  writable_[PCI_CACHE_LINE_SIZE] = std::byte{0xff};
  writable_[PCI_INTERRUPT_LINE] = std::byte{0xff};
}

void PciFunction::add_bar(unsigned index, std::uint64_t size, BusDevice& device) {
  add_bar(index, {.size = size, .device = &device, .memory = {}}, 0);
}

void PciFunction::add_memory_bar(unsigned index, std::span<std::byte> memory) {
  CHECK(memory.size() >= kPageSize &&
        reinterpret_cast<std::uintptr_t>(memory.data()) % kPageSize == 0);
  add_bar(index, {.size = memory.size(), .device = nullptr, .memory = memory},
          PCI_BASE_ADDRESS_MEM_PREFETCH);
}

void PciFunction::add_bar(unsigned index, const Bar& bar, std::uint32_t flags) {
  CHECK(index + 1 < bars_.size() && bars_[index].size == 0 && bars_[index + 1].size == 0);
  const std::uint64_t size = bar.size;
  CHECK(std::has_single_bit(size) && size > ~PCI_BASE_ADDRESS_MEM_MASK);
  bars_[index] = bar;
  set(bar_offset(index), PCI_BASE_ADDRESS_MEM_TYPE_64 | flags);
  // §6.2.5.1: bits of the address below the size are zeros that cannot be written. Who writes all
  // ones therefore reads the size back.
  const auto mask = std::bit_cast<std::array<std::byte, 8>>(le64(~(size - 1)));
  std::ranges::copy(mask, std::span(writable_).subspan(bar_offset(index)).begin());
}

unsigned PciFunction::add_capability(std::uint8_t id, std::span<const std::byte> body,
                                     std::span<const std::byte> writable) {
  const unsigned at = capabilities_end_;
  const unsigned body_at = at + PCI_CAP_LIST_NEXT + 1;
  const auto end = static_cast<unsigned>(body_at + body.size() + kWord - 1) / kWord * kWord;
  CHECK(end <= PCI_CFG_SPACE_SIZE && writable.size() <= body.size());
  set(at + PCI_CAP_LIST_ID, id);
  std::ranges::copy(body, std::span(space_).subspan(body_at).begin());
  std::ranges::copy(writable, std::span(writable_).subspan(body_at).begin());
  set(last_link_, static_cast<std::uint8_t>(at));
  set(PCI_STATUS, std::uint16_t{PCI_STATUS_CAP_LIST});
  last_link_ = at + PCI_CAP_LIST_NEXT;
  capabilities_end_ = end;
  return at;
}

void PciFunction::add_msix(unsigned bar, Msix& msix) {
  struct Body {
    le16 control;
    le32 table;
    le32 pba;
  };
  static_assert(sizeof(Body) == PCI_CAP_MSIX_SIZEOF - PCI_MSIX_FLAGS);
  const Body body = {.control = static_cast<std::uint16_t>(msix.vectors() - 1),
                     .table = bar,
                     .pba = static_cast<std::uint32_t>(msix.pba_offset()) | bar};
  const Body writable = {.control = PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL};
  add_bar(bar, msix.bar_size(), msix);
  msix_ = &msix;
  msix_at_ = add_capability(PCI_CAP_ID_MSIX, std::as_bytes(std::span(&body, 1)),
                            std::as_bytes(std::span(&writable, 1)));
}

void PciFunction::set_window(unsigned offset, BusDevice& device) {
  CHECK(offset % kWord == 0 && window_ == nullptr);
  window_ = &device;
  window_at_ = offset;
}

void PciFunction::keep_as_initial() {
  std::ranges::copy(std::span(space_).first(initial_.size()), initial_.begin());
}

void PciFunction::power_cycle() {
  const std::scoped_lock lock(mutex_);
  std::ranges::copy(initial_, space_.begin());
  if (msix_ != nullptr) {
    msix_->power_cycle();
  }
}

void PciFunction::save(SnapshotWriter& writer, unsigned slot) const {
  PciFunctionState state;
  {
    const std::scoped_lock lock(mutex_);
    std::ranges::copy(std::span(space_).first(state.space.size()), state.space.begin());
  }
  writer.add(slot, state);
  if (msix_ != nullptr) {
    msix_->save(writer, slot);
  }
}

Result<> PciFunction::restore(SnapshotReader& reader, unsigned slot) {
  TRY_ASSIGN(const PciFunctionState state, reader.take<PciFunctionState>(slot));
  const std::scoped_lock lock(mutex_);
  for (std::size_t at = 0; at < state.space.size(); ++at) {
    if (((state.space[at] ^ space_[at]) & ~writable_[at]) != std::byte{0}) {
      return bad_section<PciFunctionState>(
          slot, fmt::format("is of another function than is here: byte {:#x} differs", at));
    }
  }
  if (msix_ != nullptr) {
    const std::span control = std::span(state.space).subspan(msix_at_ + PCI_MSIX_FLAGS, 2);
    std::array<std::byte, sizeof(le16)> bytes;
    std::ranges::copy(control, bytes.begin());
    TRY(msix_->restore(reader, slot, std::bit_cast<le16>(bytes)));
  }
  std::ranges::copy(state.space, space_.begin());
  return {};
}

// The guest's accesses
// ---------------------------------------------------------------------------

void PciFunction::read_config(std::uint64_t offset, std::span<std::byte> data) {
  for (std::size_t done = 0; done < data.size(); done += kWord) {
    const std::span part = data.subspan(done, std::min<std::size_t>(kWord, data.size() - done));
    const std::uint64_t at = offset + done;
    if (at >= space_.size() || at % kWord + part.size() > kWord) {
      std::ranges::fill(part, std::byte{0xff});
    } else {
      read_word(static_cast<unsigned>(at), part);
    }
  }
}

void PciFunction::read_word(unsigned offset, std::span<std::byte> data) {
  if (in_window(offset)) {
    window_->read(offset - window_at_, data);
    return;
  }
  const std::scoped_lock lock(mutex_);
  std::ranges::copy(std::span(space_).subspan(offset, data.size()), data.begin());
}

bool PciFunction::write_config(std::uint64_t offset, std::span<const std::byte> data) {
  bool moved = false;
  for (std::size_t done = 0; done < data.size(); done += kWord) {
    const std::span part = data.subspan(done, std::min<std::size_t>(kWord, data.size() - done));
    const std::uint64_t at = offset + done;
    if (at < space_.size() && at % kWord + part.size() <= kWord) {
      moved |= write_word(static_cast<unsigned>(at), part);
    }
  }
  return moved;
}

bool PciFunction::write_word(unsigned offset, std::span<const std::byte> data) {
  if (in_window(offset)) {
    window_->write(offset - window_at_, data);
    return false;
  }
  const std::scoped_lock lock(mutex_);
  unsigned at = offset;
  for (const std::byte byte : data) {
    space_[at] = (space_[at] & ~writable_[at]) | (byte & writable_[at]);
    ++at;
  }
  if (msix_ != nullptr && offset / kWord == msix_at_ / kWord) {
    msix_->set_control(get<std::uint16_t>(msix_at_ + PCI_MSIX_FLAGS));
  }
  return concerns_bars(offset);
}

std::optional<std::uint64_t> PciFunction::bar_address(unsigned index) const {
  const std::scoped_lock lock(mutex_);
  if (bars_[index].size == 0 || (get<std::uint16_t>(PCI_COMMAND) & PCI_COMMAND_MEMORY) == 0) {
    return std::nullopt;
  }
  return get<std::uint64_t>(bar_offset(index)) & PCI_BASE_ADDRESS_MEM_MASK;
}

}  // namespace vireo
