// SPDX-License-Identifier: Apache-2.0
// What the PCI bus needs of KVM: message-signalled interrupts by irqfd, doorbells by ioeventfd, and
// memory slots.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "devices/pci/msix.h"
#include "devices/pci/root.h"
#include "src/base/log.h"
#include "src/kvm/vm.h"

namespace vireo {

/// Of one function. `vm` outlives it.
class KvmMsiRouter final : public MsiRouter {
 public:
  explicit KvmMsiRouter(KvmVm& vm) : vm_(vm) {}
  Result<std::unique_ptr<Interrupt>> create_vector(unsigned vector) override;
  void route(unsigned vector, std::uint64_t address, std::uint32_t data, bool masked) override;

 private:
  KvmVm& vm_;
  std::vector<std::uint32_t> gsis_;  // by vector
  LogLimiter log_limiter_;
};

/// `vm` outlives it.
class KvmPciHost final : public PciHost {
 public:
  explicit KvmPciHost(KvmVm& vm) : vm_(vm) {}
  Result<> attach_doorbell(GuestAddress address, unsigned width, int fd) override;
  void detach_doorbell(GuestAddress address, unsigned width, int fd) override;
  Result<> map(GuestAddress address, std::span<std::byte> memory) override;
  void unmap(GuestAddress address, std::span<std::byte> memory) override;

 private:
  KvmVm& vm_;
};

}  // namespace vireo
