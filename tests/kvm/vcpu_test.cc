// SPDX-License-Identifier: Apache-2.0
// Drives real vCPUs with a few real-mode instructions, which every KVM runs.
#include "src/kvm/vcpu.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <optional>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "src/base/fd.h"
#include "src/kvm/uapi.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kCode = 0x1000;

/// Port 0x10 takes bytes; port 0x11 gives 0x42.
class Ports final : public BusDevice {
 public:
  void read(std::uint64_t /*offset*/, std::span<std::byte> data) override {
    ++reads;
    std::ranges::fill(data, std::byte{0x42});
  }
  void write(std::uint64_t /*offset*/, std::span<const std::byte> data) override {
    const std::scoped_lock lock(mutex);
    written.push_back(std::to_integer<int>(data[0]));
  }

  std::atomic<int> reads = 0;
  std::mutex mutex;
  std::vector<int> written;
};

class Observer final : public VcpuObserver {
 public:
  Result<> vcpu_thread_begins(unsigned /*index*/) override {
    return begin_error ? Result<>(std::unexpected(*begin_error)) : Result<>();
  }
  void vcpu_first_entry(unsigned /*index*/) override { ++entries; }
  void vcpu_paused(unsigned /*index*/) override { ++pauses; }
  void vcpu_faults_in_vain(unsigned /*index*/) override {}
  void vcpu_ended(unsigned /*index*/, VcpuEnd how, const std::string& what) override {
    const std::scoped_lock lock(mutex);
    end = how;
    text = what;
    changed.notify_all();
  }
  VcpuEnd wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return end.has_value(); });
    return *end;
  }

  std::optional<Error> begin_error;
  std::atomic<int> entries = 0;
  std::atomic<int> pauses = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<VcpuEnd> end;
  std::string text;
};

struct Guest {
  explicit Guest(std::vector<std::uint8_t> code, bool profile = false,
                 std::optional<Error> begin_error = std::nullopt) {
    observer.begin_error = std::move(begin_error);
    const std::array ranges = {*GuestRange::create(GuestAddress(0), std::uint64_t{1} << 20)};
    memory = std::move(*GuestMemory::create(ranges, {}));
    REQUIRE(memory->write(GuestAddress(kCode), std::as_bytes(std::span(code))));
    auto created = KvmVm::create("/dev/kvm", {});
    if (!created) {
      FAIL(created.error().message());
    }
    vm = std::move(*created);
    REQUIRE(vm->add_memory(*memory).has_value());
    ports_bus.add(0x10, 2, ports, "test");
    ports_bus.freeze();
    mmio_bus.freeze();
    REQUIRE(prepare_vcpu_signal().has_value());
    vcpu = std::move(*Vcpu::create(*vm, 0, 0,
                                   {.ports = ports_bus,
                                    .mmio = mmio_bus,
                                    .observer = observer,
                                    .phase = phase,
                                    .count_exits = profile}));
    kvm_sregs sregs = {};
    REQUIRE(::ioctl(vcpu->fd(), KVM_GET_SREGS, &sregs) == 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    REQUIRE(::ioctl(vcpu->fd(), KVM_SET_SREGS, &sregs) == 0);
    kvm_regs regs = {};
    regs.rip = kCode;
    regs.rflags = 2;
    REQUIRE(::ioctl(vcpu->fd(), KVM_SET_REGS, &regs) == 0);
    REQUIRE(vcpu->start().has_value());
  }

  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<KvmVm> vm;
  Ports ports;
  Bus ports_bus;
  Bus mmio_bus;
  Observer observer;
  std::atomic<std::uint32_t> phase = 0;
  std::unique_ptr<Vcpu> vcpu;
};

// in al,0x11; out 0x10,al; hlt
const std::vector<std::uint8_t> kReadWriteHalt = {0xe4, 0x11, 0xe6, 0x10, 0xf4};
// l: in al,0x11; jmp l
const std::vector<std::uint8_t> kReadForever = {0xe4, 0x11, 0xeb, 0xfc};

TEST_CASE("vcpu: port accesses reach the bus, and an exit that nobody handles ends the vCPU") {
  Guest guest(kReadWriteHalt);
  CHECK(guest.observer.entries == 0);
  guest.vcpu->resume();
  // Without an in-kernel irqchip HLT is an exit, which a vireo machine never sees.
  CHECK(guest.observer.wait() == VcpuEnd::kKvmError);
  CHECK(guest.observer.text.find("KVM exit 5") != std::string::npos);
  guest.vcpu->stop();
  CHECK(guest.observer.entries == 1);
  REQUIRE(guest.ports.written.size() == 1);
  CHECK(guest.ports.written[0] == 0x42);
}

TEST_CASE("vcpu: what its thread cannot begin with is an error of its start") {
  Guest refused(kReadForever, false, Error(ErrorCode::kConfig, "no such processor"));
  const Result<> started = refused.vcpu->wait_started();
  REQUIRE_FALSE(started);
  CHECK(started.error().message() == "no such processor");
  refused.vcpu->stop();
  CHECK(refused.observer.entries == 0);

  Guest guest(kReadForever);
  CHECK(guest.vcpu->wait_started().has_value());
}

TEST_CASE("vcpu: each time that it stands still its observer is told, and it says so") {
  Guest guest(kReadForever);
  guest.vcpu->wait_paused();
  CHECK(guest.vcpu->is_paused());
  for (int round = 0; round < 3; ++round) {
    guest.vcpu->resume();
    while (guest.vcpu->is_paused()) {
      std::this_thread::yield();
    }
    guest.vcpu->pause();
    guest.vcpu->wait_paused();
    CHECK(guest.vcpu->is_paused());
  }
  guest.vcpu->stop();
  CHECK(guest.vcpu->is_paused());
  // At its start, after each round, and at its end.
  CHECK(guest.observer.pauses == 5);
}

TEST_CASE("vcpu: a triple fault is told as one") {
  Guest guest(kReadForever);
  // Put there by KVM_SET_VCPU_EVENTS, since a KVM that interprets kernel code has faults of its own
  // kind; the probe guest makes a real one.
  kvm_enable_cap capability = {};
  capability.cap = KVM_CAP_X86_TRIPLE_FAULT_EVENT;
  capability.args[0] = 1;
  REQUIRE(::ioctl(guest.vm->fd(), KVM_ENABLE_CAP, &capability) == 0);
  kvm_vcpu_events events = {};
  events.flags = KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  events.triple_fault.pending = 1;
  REQUIRE(::ioctl(guest.vcpu->fd(), KVM_SET_VCPU_EVENTS, &events) == 0);
  guest.vcpu->resume();
  CHECK(guest.observer.wait() == VcpuEnd::kTripleFault);
}

TEST_CASE("vcpu: pause stops it with no access pending, resume goes on") {
  Guest guest(kReadForever);
  for (int round = 0; round < 20; ++round) {
    const int before = guest.ports.reads;
    guest.vcpu->resume();
    while (guest.ports.reads == before) {
      std::this_thread::yield();
    }
    guest.vcpu->pause();
    guest.vcpu->wait_paused();
    const int paused = guest.ports.reads;
    kvm_regs regs = {};
    REQUIRE(::ioctl(guest.vcpu->fd(), KVM_GET_REGS, &regs) == 0);
    // The port read before the pause is complete: its value is in AL. (RIP shows it as well, at
    // either of the two instructions.)
    CHECK((regs.rax & 0xff) == 0x42);
    CHECK((regs.rip == kCode || regs.rip == kCode + 2));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(guest.ports.reads == paused);
  }
}

TEST_CASE("vcpu: the profile counts each place by direction") {
  Guest guest(kReadWriteHalt, true);
  guest.phase = 3;
  guest.vcpu->resume();
  guest.observer.wait();
  guest.vcpu->stop();
  REQUIRE(guest.vcpu->exit_stats() != nullptr);
  const auto records = guest.vcpu->exit_stats()->records();
  CHECK(records.size() == 3);
  CHECK(std::ranges::count_if(records, [](const ExitRecord& record) {
          return record.reason == KVM_EXIT_IO && record.phase == 3 && record.count == 1 &&
                 record.detail == (record.write ? 0x10 : 0x11);
        }) == 2);
  CHECK(guest.vcpu->exit_stats()->run_ns() > 0);
  const auto counters = guest.vcpu->kvm_stats().read();
  REQUIRE(counters.has_value());
  const auto value = [&counters](std::string_view name) {
    const auto found = std::ranges::find(*counters, name, &KvmCounter::name);
    return found == counters->end() ? 0 : found->value;
  };
  CHECK(value("exits") > 0);
  CHECK(value("no such counter") == 0);
}

TEST_CASE("kvm stats: a descriptor that has none is refused") {
  KvmStats stats;
  const auto opened = stats.open(-1);
  REQUIRE_FALSE(opened.has_value());
  CHECK(opened.error().message().find("KVM_GET_STATS_FD") != std::string::npos);
}

TEST_CASE("exit stats: a guest that touches everything costs no more than the table") {
  ExitStats stats;
  for (std::uint64_t port = 0; port < 65536; ++port) {
    stats.add(0, KVM_EXIT_IO, false, port, 1);
  }
  std::uint64_t count = 0;
  std::uint64_t others = 0;
  for (const ExitRecord& record : stats.records()) {
    count += record.count;
    others += record.detail == ExitStats::kOther ? record.count : 0;
  }
  CHECK(count == 65536);
  CHECK(others > 60000);
}

TEST_CASE("vm: memory of a device is the guest's where it is mapped, and changes while it runs") {
  // mov ax,0xffff; mov ds,ax; l: mov al,[0x10]; out 0x10,al; inc byte [0x10]; jmp l
  Guest guest({0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xa0, 0x10, 0x00, 0xe6, 0x10, 0xfe, 0x06, 0x10, 0x00,
               0xeb, 0xf5});
  constexpr GuestAddress kAt{0x100000};  // 0xffff:0x10
  constexpr std::uint64_t kSize = 8192;
  const auto pages = [] {
    return std::move(*Mapping::create(kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                      -1, 0, "pages"));
  };
  const Mapping one = pages();
  const Mapping other = pages();
  const auto byte_of = [](const Mapping& mapping) {
    return std::atomic_ref(reinterpret_cast<std::uint8_t&>(mapping.bytes()[0])).load();
  };
  one.bytes()[0] = std::byte{0x5a};
  REQUIRE(guest.vm->map(kAt, one.bytes()));
  const Result<> twice = guest.vm->map(kAt, other.bytes());
  REQUIRE_FALSE(twice);
  CHECK(twice.error().message().find("KVM refuses a slot of 8 KiB at 0x100000") !=
        std::string::npos);
  guest.vcpu->resume();
  while (byte_of(one) == 0x5a) {
    std::this_thread::yield();
  }
  {
    const std::scoped_lock lock(guest.ports.mutex);
    CHECK(guest.ports.written[0] == 0x5a);
  }
  REQUIRE(guest.vm->unmap(kAt));
  const std::uint8_t last = byte_of(one);
  REQUIRE(guest.vm->map(kAt, other.bytes()));
  while (byte_of(other) == 0) {
    std::this_thread::yield();
  }
  CHECK(byte_of(one) == last);
  guest.vcpu->stop();
  REQUIRE(guest.vm->unmap(kAt));
}

TEST_CASE("vm: what is missing is named") {
  const auto absent = KvmVm::create("/nonexistent/kvm", {});
  REQUIRE_FALSE(absent.has_value());
  CHECK(absent.error().code() == ErrorCode::kNoKvm);

  const auto no_kvm = KvmVm::create("/dev/null", {});
  REQUIRE_FALSE(no_kvm.has_value());
  CHECK(no_kvm.error().code() == ErrorCode::kNoKvm);

  const std::array required = {KvmCapability{.number = 100000, .name = "KVM_CAP_OF_TOMORROW"}};
  const auto lacking = KvmVm::create("/dev/kvm", required);
  REQUIRE_FALSE(lacking.has_value());
  CHECK(lacking.error().message().find("KVM_CAP_OF_TOMORROW") != std::string::npos);
}

}  // namespace
}  // namespace vireo
