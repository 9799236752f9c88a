// SPDX-License-Identifier: Apache-2.0
#include "devices/pci/root.h"

#include <algorithm>
#include <bit>

#include <linux/pci_regs.h>

#include <fmt/core.h>

#include "src/base/endian.h"

namespace vireo {

namespace {

// linux/pci_ids.h is no header of the kernel's interface.
constexpr std::uint16_t PCI_VENDOR_ID_REDHAT = 0x1b36;
constexpr std::uint16_t PCI_CLASS_BRIDGE_HOST = 0x0600;
/// The generic host bridge of QEMU, for which no guest has a quirk.
constexpr std::uint16_t kGenericHostBridge = 0x0008;

// Fields of an address in the ECAM, §7.2.2.
constexpr unsigned kSlotShift = 15;
constexpr std::uint64_t kFunctionMask = 0x7000;
constexpr std::uint64_t kRegisterMask = 0xfff;

}  // namespace

PciRoot::PciRoot(GuestRange window, PciHost& host)
    : window_(window),
      host_(host),
      host_bridge_({.vendor = PCI_VENDOR_ID_REDHAT,
                    .device = kGenericHostBridge,
                    .class_code = PCI_CLASS_BRIDGE_HOST}),
      next_free_(window.start().value()) {
  host_bridge_.keep_as_initial();
  slots_[0] = &host_bridge_;
}

Result<> PciRoot::add(unsigned slot, PciFunction& function) {
  CHECK(slot < kSlots && slots_[slot] == nullptr);
  for (unsigned index = 0; index < PCI_STD_NUM_BARS; ++index) {
    const std::uint64_t size = function.bar(index).size;
    if (size == 0) {
      continue;
    }
    // The window ends below 4 GiB, or far below 2^64: nothing overflows.
    const std::uint64_t address = (next_free_ + size - 1) & ~(size - 1);
    if (address + size > window_.end().value()) {
      return fail(ErrorCode::kConfig, fmt::format("the BARs of PCI slot {} do not fit into the "
                                                  "window of {} bytes; configure fewer devices",
                                                  slot, window_.size()));
    }
    next_free_ = address + size;
    const auto bytes = std::bit_cast<std::array<std::byte, 8>>(le64(address));
    function.write_config(PCI_BASE_ADDRESS_0 + 4 * index, bytes);
  }
  function.keep_as_initial();
  slots_[slot] = &function;
  for (const PciFunction::Doorbell& doorbell : function.doorbells()) {
    bells_.push_back({.function = &function, .doorbell = doorbell});
  }
  for (unsigned index = 0; index < PCI_STD_NUM_BARS; ++index) {
    if (!function.bar(index).memory.empty()) {
      memories_.push_back({.function = &function, .bar = index});
    }
  }
  return {};
}

void PciRoot::power_cycle() {
  for (PciFunction* const function : slots_) {
    if (function != nullptr) {
      function->power_cycle();
    }
  }
  update();
}

void PciRoot::save(SnapshotWriter& writer) const {
  for (unsigned slot = 0; slot < kSlots; ++slot) {
    if (slots_[slot] != nullptr) {
      slots_[slot]->save(writer, slot);
    }
  }
}

Result<> PciRoot::restore(SnapshotReader& reader) {
  if (Result<> restored = restore_functions(reader); !restored) {
    power_cycle();
    return restored;
  }
  update();
  return {};
}

Result<> PciRoot::restore_functions(SnapshotReader& reader) {
  for (unsigned slot = 0; slot < kSlots; ++slot) {
    if (slots_[slot] != nullptr) {
      TRY(slots_[slot]->restore(reader, slot));
    }
  }
  return {};
}

// Configuration
// -----------------------------------------------------------------------------------

PciFunction* PciRoot::Ecam::find(std::uint64_t offset) const {
  return (offset & kFunctionMask) == 0 ? root.slots_[offset >> kSlotShift] : nullptr;
}

void PciRoot::Ecam::read(std::uint64_t offset, std::span<std::byte> data) {
  if (PciFunction* const function = find(offset)) {
    function->read_config(offset & kRegisterMask, data);
  } else {
    std::ranges::fill(data, std::byte{0xff});
  }
}

void PciRoot::Ecam::write(std::uint64_t offset, std::span<const std::byte> data) {
  PciFunction* const function = find(offset);
  if (function != nullptr && function->write_config(offset & kRegisterMask, data)) {
    root.update();
  }
}

// Memory
// -----------------------------------------------------------------------------------

void PciRoot::Mmio::read(std::uint64_t offset, std::span<std::byte> data) {
  const Target target = root.target(offset, data.size());
  if (target.device != nullptr) {
    target.device->read(target.offset, data);
  } else {
    std::ranges::fill(data, std::byte{0xff});
  }
}

void PciRoot::Mmio::write(std::uint64_t offset, std::span<const std::byte> data) {
  const Target target = root.target(offset, data.size());
  if (target.device != nullptr) {
    target.device->write(target.offset, data);
  }
}

PciRoot::Target PciRoot::target(std::uint64_t offset, std::uint64_t size) {
  const std::uint64_t address = window_.start().value() + offset;
  const std::scoped_lock lock(mutex_);
  const Mapped* const mapped = find(address, size);
  return mapped == nullptr ? Target{}
                           : Target{.device = mapped->function->bar(mapped->bar).device,
                                    .offset = address - mapped->address};
}

/// The BAR that has all of the access.
const PciRoot::Mapped* PciRoot::find(std::uint64_t address, std::uint64_t size) const {
  const auto found = std::ranges::find_if(mapped_, [address, size](const Mapped& bar) {
    return address >= bar.address && size <= bar.size && address - bar.address <= bar.size - size;
  });
  return found == mapped_.end() ? nullptr : &*found;
}

/// After any change of the BARs: what answers where. Whoever comes last here sees what all have
/// written.
void PciRoot::update() {
  const std::scoped_lock lock(mutex_);
  find_bars();
  move_doorbells();
  move_memory();
}

void PciRoot::find_bars() {
  mapped_.clear();
  for (const PciFunction* const function : slots_) {
    for (unsigned index = 0; function != nullptr && index < PCI_STD_NUM_BARS; ++index) {
      const PciFunction::Bar& bar = function->bar(index);
      const std::optional<std::uint64_t> address = function->bar_address(index);
      if (address && window_.contains(GuestAddress(*address)) &&
          bar.size <= window_.end().value() - *address) {
        mapped_.push_back(
            {.function = function, .bar = index, .address = *address, .size = bar.size});
      }
    }
  }
}

void PciRoot::move_doorbells() {
  // All are off before one is hung anew: two that change places are never both at one address.
  for (Bell& bell : bells_) {
    if (bell.attached && bell.attached != wanted_address(bell)) {
      host_.detach_doorbell(*bell.attached, bell.doorbell.width, bell.doorbell.fd);
      bell.attached.reset();
    }
  }
  for (Bell& bell : bells_) {
    const std::optional<GuestAddress> wanted = wanted_address(bell);
    if (wanted && !bell.attached) {
      if (const Result<> done =
              host_.attach_doorbell(*wanted, bell.doorbell.width, bell.doorbell.fd)) {
        bell.attached = wanted;
      } else {
        // The slow way, through the BAR, is still there.
        log_guest(log_limiter_, "pci", "a doorbell is slow: {}", done.error().message());
      }
    }
  }
}

void PciRoot::move_memory() {
  for (Memory& memory : memories_) {
    if (memory.mapped && memory.mapped != wanted_address(memory)) {
      host_.unmap(*memory.mapped, memory.function->bar(memory.bar).memory);
      memory.mapped.reset();
    }
  }
  for (Memory& memory : memories_) {
    const std::optional<GuestAddress> wanted = wanted_address(memory);
    if (wanted && !memory.mapped) {
      if (const Result<> done = host_.map(*wanted, memory.function->bar(memory.bar).memory)) {
        memory.mapped = wanted;
      } else {
        log_guest(log_limiter_, "pci", "a BAR's memory is not there: {}", done.error().message());
      }
    }
  }
}

/// None where it does not answer.
const PciRoot::Mapped* PciRoot::find_bar(const PciFunction& function, unsigned bar) const {
  const auto found = std::ranges::find_if(mapped_, [&function, bar](const Mapped& mapped) {
    return mapped.function == &function && mapped.bar == bar;
  });
  return found == mapped_.end() ? nullptr : &*found;
}

/// Where a write reaches this doorbell, and not the BAR of a lower slot.
std::optional<GuestAddress> PciRoot::wanted_address(const Bell& bell) const {
  const Mapped* const own = find_bar(*bell.function, bell.doorbell.bar);
  if (own == nullptr) {
    return std::nullopt;
  }
  const std::uint64_t address = own->address + bell.doorbell.offset;
  return find(address, bell.doorbell.width) == own ? std::optional(GuestAddress(address))
                                                   : std::nullopt;
}

/// Where it hides nothing of a lower slot.
std::optional<GuestAddress> PciRoot::wanted_address(const Memory& memory) const {
  const Mapped* const own = find_bar(*memory.function, memory.bar);
  if (own == nullptr) {
    return std::nullopt;
  }
  const bool hides =
      std::ranges::any_of(std::span(mapped_.data(), own), [own](const Mapped& lower) {
        return lower.address < own->address + own->size &&
               own->address < lower.address + lower.size;
      });
  return hides ? std::nullopt : std::optional(GuestAddress(own->address));
}

}  // namespace vireo
