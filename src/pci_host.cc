// SPDX-License-Identifier: Apache-2.0
#include "src/pci_host.h"

#include <utility>

namespace vireo {

Result<std::unique_ptr<Interrupt>> KvmMsiRouter::create_vector(unsigned vector) {
  CHECK(vector == gsis_.size());
  TRY_ASSIGN(KvmVm::MsiInterrupt msi, vm_.create_msi());
  gsis_.push_back(msi.gsi);
  return std::move(msi.interrupt);
}

void KvmMsiRouter::route(unsigned vector, std::uint64_t address, std::uint32_t data, bool masked) {
  if (masked) {
    return;
  }
  // KVM refuses an address that is none of a local APIC's: the guest's mistake, and its loss.
  if (const Result<> routed = vm_.route_msi(gsis_[vector], address, data); !routed) {
    log_guest(log_limiter_, "pci", "vector {}: {}", vector, routed.error().message());
  }
}

Result<> KvmPciHost::attach_doorbell(GuestAddress address, unsigned width, int fd) {
  return vm_.add_ioeventfd(address, width, std::nullopt, fd);
}

void KvmPciHost::detach_doorbell(GuestAddress address, unsigned width, int fd) {
  CHECK(vm_.remove_ioeventfd(address, width, std::nullopt, fd));
}

Result<> KvmPciHost::map(GuestAddress address, std::span<std::byte> memory) {
  return vm_.map(address, memory);
}

void KvmPciHost::unmap(GuestAddress address, std::span<std::byte> /*memory*/) {
  CHECK(vm_.unmap(address));
}

}  // namespace vireo
