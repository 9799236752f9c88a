// SPDX-License-Identifier: Apache-2.0
// The KVM virtual machine: /dev/kvm, the VM descriptor, memory slots, interrupt lines.
//
// Owned by Machine. Set up on the main thread in this order, because a slot that changes soon after
// something joined KVM's I/O buses waits for a grace period of milliseconds:
//   1. create()        2. add_memory()        3. arch: irqchip        4. create_interrupt(), vCPUs
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/bus/interrupt.h"
#include "src/kvm/uapi.h"
#include "src/memory/guest_memory.h"

namespace vireo {

/// A KVM capability that vireo cannot do without, for a message that names it.
struct KvmCapability {
  int number;        ///< KVM_CAP_…
  const char* name;  ///< the same as text
};

class KvmVm {
 public:
  /// Opens `device` (normally /dev/kvm) and creates a VM. Errors: kNoKvm where it is missing, is no
  /// KVM, or lacks one of `required`; kPermission where it may not be opened.
  static Result<std::unique_ptr<KvmVm>> create(const std::string& device,
                                               std::span<const KvmCapability> required);

  /// Registers every region of `memory`, which must outlive this object, as a memory slot.
  Result<> add_memory(const GuestMemory& memory);
  /// Has the guest find `host`, whole pages that outlive this object or unmap(), at `address`,
  /// where nothing else is. It is no guest memory: devices are not given buffers in it. Any thread.
  Result<> map(GuestAddress address, std::span<std::byte> host);
  /// Ends what map() has done at `address`. Any thread.
  Result<> unmap(GuestAddress address);

  /// Has KVM note from here on which pages of `memory`, which was added, its guest writes; or no
  /// longer. What was noted before is forgotten. Any thread, one at a time. Errors: kNoKvm.
  Result<> start_dirty_log(const GuestMemory& memory);
  Result<> stop_dirty_log(const GuestMemory& memory);
  /// Adds what was noted to `pages`, and begins anew. As start_dirty_log().
  Result<> take_dirty_log(const GuestMemory& memory, PageSet& pages);

  /// An edge on global system interrupt `gsi`, by KVM_IRQ_LINE; after the irqchip exists. The
  /// object must not outlive this one. For devices that interrupt rarely: an irqfd saves one system
  /// call for each edge, and costs milliseconds when the VM ends (each waits for grace periods of
  /// KVM's).
  std::unique_ptr<Interrupt> create_line_interrupt(std::uint32_t gsi);

  /// The same by an irqfd, for devices that interrupt often: one write for each edge, from any
  /// thread whatever it may do else. Errors: kSystem where no descriptor is to be had.
  Result<std::unique_ptr<Interrupt>> create_irqfd(std::uint32_t gsi);
  /// Has KVM count eventfd `fd` up, and the guest go on, when it writes `width` bytes to `address`:
  /// `value`, or whatever it is where that is none. Any thread.
  Result<> add_ioeventfd(GuestAddress address, unsigned width, std::optional<std::uint32_t> value,
                         int fd);
  /// Ends what add_ioeventfd() has begun with the same arguments. Any thread.
  Result<> remove_ioeventfd(GuestAddress address, unsigned width,
                            std::optional<std::uint32_t> value, int fd);

  /// A message-signalled interrupt by an irqfd. It sends nothing before route_msi().
  struct MsiInterrupt {
    std::uint32_t gsi = 0;
    std::unique_ptr<Interrupt> interrupt;
  };
  Result<MsiInterrupt> create_msi();
  /// From here on the interrupt with this `gsi` sends `data` to `address`. Any thread.
  Result<> route_msi(std::uint32_t gsi, std::uint64_t address, std::uint32_t data);
  /// Where the lines of the interrupt controllers lead: a change of any route tells KVM of all. By
  /// arch, when it has created those.
  void set_line_routes(std::span<const kvm_irq_routing_entry> routes);

  /// Sends a message-signalled interrupt (KVM_SIGNAL_MSI). Any thread.
  Result<> signal_msi(std::uint64_t address, std::uint32_t data) const;

  /// The VM descriptor and the one of /dev/kvm; owned by this object.
  int fd() const { return vm_.get(); }
  int kvm_fd() const { return kvm_.get(); }
  /// KVM_CHECK_EXTENSION on the VM: 0 where it is absent.
  int check_extension(int capability) const;
  /// Size in bytes of the kvm_run area of a vCPU.
  std::size_t run_size() const { return run_size_; }

 private:
  KvmVm() = default;

  Result<> set_slot(std::uint32_t slot, GuestAddress address, std::span<std::byte> host,
                    std::string_view what, std::uint32_t flags = 0);
  Result<> change_ioeventfd(GuestAddress address, unsigned width,
                            std::optional<std::uint32_t> value, int fd, std::uint32_t flags);

  UniqueFd kvm_;
  UniqueFd vm_;
  std::uint32_t ram_slots_ = 0;
  std::mutex mapped_mutex_;
  std::vector<std::optional<GuestAddress>> mapped_;  // by slot, behind those of RAM
  std::mutex routes_mutex_;
  std::vector<kvm_irq_routing_entry> routes_;  // the lines, then messages by their GSI
  std::uint32_t next_msi_gsi_ = 0;
  std::size_t run_size_ = 0;
};

}  // namespace vireo
