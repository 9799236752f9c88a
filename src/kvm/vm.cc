// SPDX-License-Identifier: Apache-2.0
#include "src/kvm/vm.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fcntl.h>

#include <fmt/core.h>

#include "src/kvm/uapi.h"

namespace vireo {

namespace {

constexpr std::uint64_t kPage = 4096;

/// An input of the IOAPIC, raised and lowered again.
class LineInterrupt final : public Interrupt {
 public:
  LineInterrupt(int vm_fd, std::uint32_t gsi) : vm_fd_(vm_fd), gsi_(gsi) {}
  void raise() override {
    set_level(1);
    set_level(0);
  }

 private:
  void set_level(std::uint32_t level) const {
    kvm_irq_level line = {};
    line.irq = gsi_;
    line.level = level;
    // Fails only for a descriptor or a number that is none: our own fault.
    CHECK(::ioctl(vm_fd_, KVM_IRQ_LINE, &line) == 0);
  }

  int vm_fd_;
  std::uint32_t gsi_;
};

/// An input of the IOAPIC that an eventfd raises: one edge for each write.
class IrqfdInterrupt final : public Interrupt {
 public:
  explicit IrqfdInterrupt(UniqueFd eventfd) : eventfd_(std::move(eventfd)) {}
  void raise() override { signal_eventfd(eventfd_.get()); }

 private:
  UniqueFd eventfd_;
};

Result<UniqueFd> open_kvm(const std::string& device) {
  auto fd = open_file(device, O_RDWR);
  if (fd) {
    return fd;
  }
  const Error& error = fd.error();
  if (error.code() == ErrorCode::kPermission) {
    return fail(ErrorCode::kPermission,
                error.message() +
                    " (add the user to the group that owns it, or pass it a node that "
                    "the user may open)");
  }
  return fail(ErrorCode::kNoKvm, error.message() + " (is KVM enabled and its module loaded?)");
}

Result<UniqueFd> create_vm(int kvm_fd) {
  int vm_fd = -1;
  do {
    // Interrupted creation leaves nothing behind and is simply tried again.
    vm_fd = ::ioctl(kvm_fd, KVM_CREATE_VM, 0UL);
  } while (vm_fd < 0 && errno == EINTR);
  if (vm_fd < 0) {
    return fail_errno(errno, "KVM_CREATE_VM");
  }
  return UniqueFd(vm_fd);
}

}  // namespace

Result<std::unique_ptr<KvmVm>> KvmVm::create(const std::string& device,
                                             std::span<const KvmCapability> required) {
  auto vm = std::unique_ptr<KvmVm>(new KvmVm());
  TRY_ASSIGN(vm->kvm_, open_kvm(device));
  const int version = ::ioctl(vm->kvm_.get(), KVM_GET_API_VERSION, 0UL);
  if (version != KVM_API_VERSION) {
    return fail(ErrorCode::kNoKvm,
                fmt::format("{} is not a KVM device of API version {}", device, KVM_API_VERSION));
  }
  for (const KvmCapability& capability : required) {
    if (::ioctl(vm->kvm_.get(), KVM_CHECK_EXTENSION,
                static_cast<unsigned long>(capability.number)) <= 0) {
      return fail(ErrorCode::kNoKvm,
                  fmt::format("this host's KVM lacks {}, which vireo needs", capability.name));
    }
  }
  TRY_ASSIGN(const int run_size,
             try_ioctl(vm->kvm_.get(), KVM_GET_VCPU_MMAP_SIZE, 0UL, "KVM_GET_VCPU_MMAP_SIZE"));
  vm->run_size_ = static_cast<std::size_t>(run_size);
  TRY_ASSIGN(vm->vm_, create_vm(vm->kvm_.get()));
  return vm;
}

Result<> KvmVm::add_memory(const GuestMemory& memory) {
  for (const GuestMemory::Region& region : memory.regions()) {
    TRY(set_slot(ram_slots_++, region.range.start(), region.host, "machine.memory"));
  }
  return {};
}

Result<> KvmVm::map(GuestAddress address, std::span<std::byte> host) {
  const std::scoped_lock lock(mapped_mutex_);
  const auto free =
      std::ranges::find_if_not(mapped_, [](const auto& slot) { return slot.has_value(); });
  const auto number = static_cast<std::uint32_t>(free - mapped_.begin());
  TRY(set_slot(ram_slots_ + number, address, host, "memory of a device"));
  mapped_.resize(std::max<std::size_t>(mapped_.size(), number + 1));
  mapped_[number] = address;
  return {};
}

Result<> KvmVm::unmap(GuestAddress address) {
  const std::scoped_lock lock(mapped_mutex_);
  const auto found = std::ranges::find(mapped_, address);
  CHECK(found != mapped_.end());
  const auto number = static_cast<std::uint32_t>(found - mapped_.begin());
  TRY(set_slot(ram_slots_ + number, address, {}, "memory of a device"));
  found->reset();
  return {};
}

/// None of a slot that is there: it goes.
Result<> KvmVm::set_slot(std::uint32_t slot, GuestAddress address, std::span<std::byte> host,
                         std::string_view what, std::uint32_t flags) {
  const kvm_userspace_memory_region argument = {
      .slot = slot,
      .flags = flags,
      .guest_phys_addr = address.value(),
      .memory_size = host.size(),
      .userspace_addr = reinterpret_cast<std::uint64_t>(host.data()),
  };
  TRY(try_ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &argument,
                fmt::format("{}: KVM refuses a slot of {} KiB at {:#x}", what, host.size() >> 10,
                            address.value())));
  return {};
}

Result<> KvmVm::start_dirty_log(const GuestMemory& memory) {
  // Pages are protected when their notes are taken, not all at once when the log begins.
  kvm_enable_cap capability = {};
  capability.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
  capability.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
  if (Result<int> enabled =
          try_ioctl(vm_.get(), KVM_ENABLE_CAP, &capability, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
      !enabled) {
    return fail(ErrorCode::kNoKvm, enabled.error().message());
  }
  std::uint32_t slot = 0;
  for (const GuestMemory::Region& region : memory.regions()) {
    TRY(set_slot(slot++, region.range.start(), region.host, "the log of changed pages",
                 KVM_MEM_LOG_DIRTY_PAGES));
  }
  PageSet all(memory.size() / kPage);
  return take_dirty_log(memory, all);
}

Result<> KvmVm::stop_dirty_log(const GuestMemory& memory) {
  std::uint32_t slot = 0;
  for (const GuestMemory::Region& region : memory.regions()) {
    TRY(set_slot(slot++, region.range.start(), region.host, "the log of changed pages"));
  }
  return {};
}

Result<> KvmVm::take_dirty_log(const GuestMemory& memory, PageSet& pages) {
  std::uint32_t slot = 0;
  std::size_t first = 0;  // word of the region
  for (const GuestMemory::Region& region : memory.regions()) {
    const std::uint64_t count = region.host.size() / kPage;
    CHECK(count % PageSet::kBits == 0);
    std::vector<std::uint64_t> words(count / PageSet::kBits);
    kvm_dirty_log log = {};
    log.slot = slot;
    log.dirty_bitmap = words.data();
    TRY(try_ioctl(vm_.get(), KVM_GET_DIRTY_LOG, &log, "KVM_GET_DIRTY_LOG"));
    kvm_clear_dirty_log clear = {};
    clear.slot = slot++;
    clear.num_pages = static_cast<std::uint32_t>(count);
    clear.dirty_bitmap = words.data();
    TRY(try_ioctl(vm_.get(), KVM_CLEAR_DIRTY_LOG, &clear, "KVM_CLEAR_DIRTY_LOG"));
    for (const std::uint64_t word : words) {
      pages.words()[first++] |= word;
    }
  }
  return {};
}

std::unique_ptr<Interrupt> KvmVm::create_line_interrupt(std::uint32_t gsi) {
  return std::make_unique<LineInterrupt>(vm_.get(), gsi);
}

Result<std::unique_ptr<Interrupt>> KvmVm::create_irqfd(std::uint32_t gsi) {
  TRY_ASSIGN(UniqueFd eventfd, create_eventfd());
  const kvm_irqfd argument = {.fd = static_cast<std::uint32_t>(eventfd.get()), .gsi = gsi};
  TRY(try_ioctl(vm_.get(), KVM_IRQFD, &argument, "KVM_IRQFD"));
  return std::make_unique<IrqfdInterrupt>(std::move(eventfd));
}

Result<> KvmVm::change_ioeventfd(GuestAddress address, unsigned width,
                                 std::optional<std::uint32_t> value, int fd, std::uint32_t flags) {
  const kvm_ioeventfd argument = {
      .datamatch = value.value_or(0),
      .addr = address.value(),
      .len = width,
      .fd = fd,
      .flags = flags | (value ? std::uint32_t{KVM_IOEVENTFD_FLAG_DATAMATCH} : 0)};
  TRY(try_ioctl(vm_.get(), KVM_IOEVENTFD, &argument, "KVM_IOEVENTFD"));
  return {};
}

Result<> KvmVm::add_ioeventfd(GuestAddress address, unsigned width,
                              std::optional<std::uint32_t> value, int fd) {
  return change_ioeventfd(address, width, value, fd, 0);
}

Result<> KvmVm::remove_ioeventfd(GuestAddress address, unsigned width,
                                 std::optional<std::uint32_t> value, int fd) {
  return change_ioeventfd(address, width, value, fd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

void KvmVm::set_line_routes(std::span<const kvm_irq_routing_entry> routes) {
  routes_.assign(routes.begin(), routes.end());
  for (const kvm_irq_routing_entry& route : routes) {
    next_msi_gsi_ = std::max(next_msi_gsi_, route.gsi + 1);
  }
}

Result<KvmVm::MsiInterrupt> KvmVm::create_msi() {
  MsiInterrupt msi = {.gsi = next_msi_gsi_++};
  TRY_ASSIGN(msi.interrupt, create_irqfd(msi.gsi));
  return msi;
}

Result<> KvmVm::route_msi(std::uint32_t gsi, std::uint64_t address, std::uint32_t data) {
  const std::scoped_lock lock(routes_mutex_);
  auto route = std::ranges::find(routes_, gsi, &kvm_irq_routing_entry::gsi);
  if (route == routes_.end()) {
    route = routes_.insert(route, kvm_irq_routing_entry{});
    route->gsi = gsi;
    route->type = KVM_IRQ_ROUTING_MSI;
  }
  route->u.msi.address_lo = static_cast<std::uint32_t>(address);
  route->u.msi.address_hi = static_cast<std::uint32_t>(address >> 32);
  route->u.msi.data = data;
  // kvm_irq_routing, whose entries C++ has no member for: a header, and then they.
  struct Header {
    std::uint32_t count;
    std::uint32_t flags;
  };
  static_assert(sizeof(Header) == sizeof(kvm_irq_routing));
  const Header header = {.count = static_cast<std::uint32_t>(routes_.size()), .flags = 0};
  const std::span<const std::byte> entries = std::as_bytes(std::span(routes_));
  std::vector<std::byte> argument(sizeof(header) + entries.size());
  std::ranges::copy(std::as_bytes(std::span(&header, 1)), argument.begin());
  std::ranges::copy(entries, std::span(argument).subspan(sizeof(header)).begin());
  TRY(try_ioctl(vm_.get(), KVM_SET_GSI_ROUTING, argument.data(), "KVM_SET_GSI_ROUTING"));
  return {};
}

Result<> KvmVm::signal_msi(std::uint64_t address, std::uint32_t data) const {
  const kvm_msi message = {.address_lo = static_cast<std::uint32_t>(address),
                           .address_hi = static_cast<std::uint32_t>(address >> 32),
                           .data = data};
  TRY(try_ioctl(vm_.get(), KVM_SIGNAL_MSI, &message, "KVM_SIGNAL_MSI"));
  return {};
}

int KvmVm::check_extension(int capability) const {
  return ::ioctl(vm_.get(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability));
}

}  // namespace vireo
