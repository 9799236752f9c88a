// SPDX-License-Identifier: Apache-2.0
// What lies around a PCI function in a machine, for tests: the way of its messages to the guest,
// the guest's accesses, doorbells that KVM would hang up.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <tuple>

#include "devices/pci/msix.h"
#include "devices/pci/root.h"
#include "src/base/endian.h"
#include "tests/support/catch.h"

namespace vireo {

/// Counts what arrives, by its data, as an interrupt controller would have it.
class FakeMsiRouter final : public MsiRouter {
 public:
  struct Route {
    std::uint64_t address = 0;
    std::uint32_t data = 0;
    bool masked = true;
  };

  Result<std::unique_ptr<Interrupt>> create_vector(unsigned vector) override {
    const std::scoped_lock lock(mutex_);
    routes_[vector] = {};
    return std::make_unique<Vector>(*this, vector);
  }
  void route(unsigned vector, std::uint64_t address, std::uint32_t data, bool masked) override {
    const std::scoped_lock lock(mutex_);
    routes_[vector] = {.address = address, .data = data, .masked = masked};
    ++told_;
  }

  Route route_of(unsigned vector) const {
    const std::scoped_lock lock(mutex_);
    return routes_.at(vector);
  }
  /// How often it was told of a route.
  unsigned told() const {
    const std::scoped_lock lock(mutex_);
    return told_;
  }
  int messages(std::uint32_t data) const {
    const std::scoped_lock lock(mutex_);
    const auto found = messages_.find(data);
    return found == messages_.end() ? 0 : found->second;
  }

 private:
  struct Vector final : Interrupt {
    Vector(FakeMsiRouter& owner, unsigned index) : router(owner), vector(index) {}
    void raise() override {
      const std::scoped_lock lock(router.mutex_);
      ++router.messages_[router.routes_[vector].data];
    }
    FakeMsiRouter& router;
    unsigned vector;
  };

  mutable std::mutex mutex_;
  std::map<unsigned, Route> routes_;
  std::map<std::uint32_t, int> messages_;
  unsigned told_ = 0;
};

/// Refuses what KVM refuses: two doorbells of one width at one address.
class FakePciHost final : public PciHost {
 public:
  Result<> attach_doorbell(GuestAddress address, unsigned width, int fd) override {
    const std::scoped_lock lock(mutex_);
    if (full || attached_.contains({address, width})) {
      return fail(ErrorCode::kSystem, "no doorbell");
    }
    attached_[{address, width}] = fd;
    return {};
  }
  void detach_doorbell(GuestAddress address, unsigned width, int fd) override {
    const std::scoped_lock lock(mutex_);
    const auto found = attached_.find({address, width});
    CHECK((found != attached_.end() && found->second == fd));
    attached_.erase(found);
  }

  Result<> map(GuestAddress address, std::span<std::byte> memory) override {
    const std::scoped_lock lock(mutex_);
    if (full) {
      return fail(ErrorCode::kSystem, "no slot");
    }
    for (const auto& [start, mapped] : mapped_) {
      CHECK((start.value() + mapped.size() <= address.value() ||
             address.value() + memory.size() <= start.value()));
    }
    mapped_[address] = memory;
    return {};
  }
  void unmap(GuestAddress address, std::span<std::byte> memory) override {
    const std::scoped_lock lock(mutex_);
    const auto found = mapped_.find(address);
    CHECK((found != mapped_.end() && found->second.data() == memory.data()));
    mapped_.erase(found);
  }

  /// What a guest finds at `address` with no way through the bus; nothing: the access leaves it.
  std::byte* memory_at(std::uint64_t address) const {
    const std::scoped_lock lock(mutex_);
    for (const auto& [start, memory] : mapped_) {
      if (address >= start.value() && address - start.value() < memory.size()) {
        return &memory[address - start.value()];
      }
    }
    return nullptr;
  }
  /// The eventfd that such a write counts up; -1: none, the access leaves the guest.
  int fd_at(std::uint64_t address, unsigned width) const {
    const std::scoped_lock lock(mutex_);
    const auto found = attached_.find({GuestAddress(address), width});
    return found == attached_.end() ? -1 : found->second;
  }
  std::size_t count() const {
    const std::scoped_lock lock(mutex_);
    return attached_.size();
  }

  bool full = false;  ///< as a kernel that has no more room

 private:
  mutable std::mutex mutex_;
  std::map<std::tuple<GuestAddress, unsigned>, int> attached_;
  std::map<GuestAddress, std::span<std::byte>> mapped_;
};

// A guest's accesses to whatever is on a bus.

template <typename T>
T load(BusDevice& device, std::uint64_t offset) {
  std::array<std::byte, sizeof(T)> bytes = {};
  device.read(offset, bytes);
  return std::bit_cast<LittleEndian<T>>(bytes);
}
template <typename T>
void store(BusDevice& device, std::uint64_t offset, T value) {
  device.write(offset, std::bit_cast<std::array<std::byte, sizeof(T)>>(LittleEndian<T>(value)));
}

/// The configuration space of a function as something on a bus, without one.
struct ConfigOf final : BusDevice {
  explicit ConfigOf(PciFunction& whose) : function(whose) {}
  void read(std::uint64_t offset, std::span<std::byte> data) override {
    function.read_config(offset, data);
  }
  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    moved = function.write_config(offset, data);
  }
  PciFunction& function;
  bool moved = false;  ///< what the last write said
};

/// Some bytes behind a BAR.
struct FakeRegisters final : BusDevice {
  explicit FakeRegisters(std::byte value = std::byte{0}) { bytes.fill(value); }
  void read(std::uint64_t offset, std::span<std::byte> data) override {
    std::ranges::copy(std::span(bytes).subspan(offset, data.size()), data.begin());
  }
  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    std::ranges::copy(data, std::span(bytes).subspan(offset).begin());
  }
  std::array<std::byte, 0x1000> bytes = {};
};

}  // namespace vireo
