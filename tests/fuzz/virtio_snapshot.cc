// SPDX-License-Identifier: Apache-2.0
// Fuzz target: virtio devices restored from sections that were saved, with bytes of them changed
// and sections cut. What comes of it is used by a guest as hostile, and is what it saves; nothing
// comes of what was refused.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "devices/block/block_device.h"
#include "devices/block/raw_disk.h"
#include "devices/pci/root.h"
#include "devices/rng/rng_device.h"
#include "devices/virtio/mmio_transport.h"
#include "devices/virtio/pci_transport.h"
#include "devices/virtio/uapi.h"
#include "src/base/log.h"
#include "src/io/reactor.h"
#include "src/memory/guest_memory.h"
#include "src/snapshot/snapshot.h"
#include "tests/fuzz/fuzz_host.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/fuzz_pci.h"
#include "tests/support/hostile_sections.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMemorySize = 0x8000;
constexpr std::uint64_t kWindow = 0xd0000000;
constexpr std::uint64_t kWindowSize = 0x40000;
constexpr unsigned kIndex = 3;
constexpr off_t kDiskSize = 64 << 10;
constexpr std::uint16_t kRingSize = 8;
constexpr std::uint64_t kHour = 3'600'000'000'000;

struct Line final : Interrupt {
  void raise() override {}
};

/// One device on one transport.
struct Kind {
  bool pci = false;
  bool block = false;
};

/// A device's section ends with its bucket for operations (TokenBucketState), which fills up
/// between two looks at it.
void forget_time(std::span<std::byte> section) {
  constexpr std::size_t kMissing = 3 * sizeof(std::uint64_t);
  constexpr std::size_t kRemainder = sizeof(std::uint64_t);
  for (const std::size_t from_end : {kMissing, kRemainder}) {
    std::ranges::fill(section.last(from_end).first(sizeof(std::uint64_t)), std::byte{0});
  }
}

class Machine {
 public:
  Machine(FuzzHost& host, Kind kind) : host_(host), device_(make_device(kind)) {
    const std::array<Reactor*, 1> reactors = {host.reactor.get()};
    if (kind.pci) {
      pci_ = std::move(*PciTransport::create(*device_, *host.memory, reactors, router_));
      CHECK(root_.add(kIndex, pci_->function()));
    } else {
      mmio_ = std::move(*MmioTransport::create(*device_, *host.memory, reactors, line_));
    }
  }
  ~Machine() {
    core().write_status(0);
    CHECK(core().status() == 0);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  VirtioTransport& core() { return pci_ ? pci_->core() : mmio_->core(); }
  void begin();
  void resume() {
    host_.on_reactor([this](Task& done) { core().resume(done); });
  }
  void quiesce() {
    host_.on_reactor([this](Task& done) { core().quiesce(done); });
  }
  void step(FuzzInput& input);
  void save(SnapshotWriter& writer) {
    if (pci_) {
      root_.save(writer);
      pci_->save(writer, kIndex);
    } else {
      mmio_->save(writer, kIndex);
    }
  }
  std::vector<std::vector<std::byte>> saved() {
    SnapshotWriter writer;
    save(writer);
    std::vector<std::vector<std::byte>> all;
    for (const SnapshotSection& section : writer.sections()) {
      all.emplace_back(section.bytes.begin(), section.bytes.end());
      if (section.tag == "virtio-rng" || section.tag == "virtio-blk") {
        forget_time(all.back());
      }
    }
    return all;
  }
  /// As a machine does it: all, or nothing of it.
  Result<> restore(std::span<const SnapshotSection> sections) {
    Result<> restored = restore_all(sections);
    if (!restored) {
      root_.power_cycle();
      pci_ ? pci_->power_cycle() : mmio_->power_cycle();
    }
    return restored;
  }

 private:
  static std::unique_ptr<VirtioDevice> make_device(Kind kind);
  Result<> restore_all(std::span<const SnapshotSection> sections);

  FuzzHost& host_;
  Line line_;
  FuzzMsiRouter router_;
  FuzzPciHost pci_host_{kWindow, kWindowSize};
  std::unique_ptr<VirtioDevice> device_;
  std::unique_ptr<MmioTransport> mmio_;
  std::unique_ptr<PciTransport> pci_;
  PciRoot root_{*GuestRange::create(GuestAddress(kWindow), kWindowSize), pci_host_};
};

std::unique_ptr<VirtioDevice> Machine::make_device(Kind kind) {
  // Not so much that nothing happens, nor so little that it never waits.
  const RateLimitConfig limit = {.ops = TokenBucketConfig{.size = 16, .refill_ns = kHour}};
  if (!kind.block) {
    return std::make_unique<RngDevice>(limit);
  }
  const UniqueFd file(::memfd_create("disk", 0));
  CHECK(::ftruncate(file.get(), kDiskSize) == 0);
  Result<DiskFile> disk =
      open_disk_file("/proc/self/fd/" + std::to_string(file.get()), {.writable = true});
  CHECK(disk);
  return std::make_unique<BlockDevice>(
      BlockDevice::Settings{.id = "disk", .queues = 2, .rate_limit = limit},
      std::make_unique<RawDisk>(std::move(*disk)));
}

Result<> Machine::restore_all(std::span<const SnapshotSection> sections) {
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(sections));
  if (pci_) {
    TRY(root_.restore(reader));
    TRY(pci_->restore(reader, kIndex));
  } else {
    TRY(mmio_->restore(reader, kIndex));
  }
  return reader.finish();
}

/// A driver that uses the first queue.
void Machine::begin() {
  constexpr std::uint8_t kAlive = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
  VirtioTransport& transport = core();
  transport.write_status(kAlive);
  transport.set_driver_features(0, 1U << VIRTIO_RING_F_EVENT_IDX);
  transport.set_driver_features(1, 1);  // VIRTIO_F_VERSION_1
  transport.write_status(VIRTIO_CONFIG_S_FEATURES_OK);
  transport.configure_queue(0, [](QueueConfig& config) {
    config.size = kRingSize;
    config.ready = true;
    config.avail_ring = GuestAddress(0x100);
    config.used_ring = GuestAddress(0x200);
  });
  transport.write_status(VIRTIO_CONFIG_S_DRIVER_OK);
}

void Machine::step(FuzzInput& input) {
  const std::uint8_t what = input.byte();
  if ((what & 1U) == 0) {
    core().notify(what >> 1 & 1U);
    return;
  }
  std::array<std::byte, 16> bytes = {};
  const std::span data = std::span(bytes).first((what & 2U) == 0 ? 16 : 2);
  // The rings that begin() makes are at the front.
  const std::uint64_t at = input.number((what & 4U) == 0 ? 2 : 1);
  input.fill(data);
  CHECK(host_.memory->write(GuestAddress(at % (kMemorySize - bytes.size())), data));
}

/// What a device in use saves, and one that nobody has touched.
struct Reference {
  Reference(FuzzHost& host, Kind kind) {
    fresh = Machine(host, kind).saved();
    Machine machine(host, kind);
    machine.begin();
    machine.quiesce();
    machine.save(used);
  }
  SnapshotWriter used;
  std::vector<std::vector<std::byte>> fresh;
};

void change(HostileSections& hostile, std::size_t count, FuzzInput& input) {
  for (unsigned changes = input.byte() % 8U; changes > 0; --changes) {
    const std::uint8_t what = input.byte();
    std::vector<std::byte>& bytes = hostile.bytes(what % count);
    const std::uint64_t at = input.number(2);
    if (what >= 0xf0) {
      bytes.resize(at % (bytes.size() + 2));
    } else if (!bytes.empty()) {
      bytes[at % bytes.size()] = std::byte{input.byte()};
    }
  }
}

void run(FuzzHost& host, Kind kind, const Reference& reference, FuzzInput& input) {
  std::ranges::fill(host.room.bytes(), std::byte{0});
  HostileSections hostile(reference.used.sections());
  change(hostile, reference.fresh.size(), input);
  Machine machine(host, kind);
  if (!machine.restore(hostile.sections())) {
    CHECK(machine.saved() == reference.fresh);
    return;
  }
  {
    SnapshotWriter once;
    machine.save(once);
    Machine again(host, kind);
    CHECK(again.restore(once.sections()));
    CHECK(again.saved() == machine.saved());
  }
  machine.resume();
  while (!input.empty()) {
    machine.step(input);
  }
  machine.quiesce();
  machine.saved();
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vireo;  // NOLINT(google-build-using-namespace)
  // Guests may fill a log; a fuzzer's terminal needs not.
  static const bool quiet = open_log({.level = LogLevel::kOff}).has_value();
  CHECK(quiet);
  static FuzzHost host(kMemorySize);
  static constexpr std::array<Kind, 4> kKinds = {
      Kind{}, {.block = true}, {.pci = true}, {.pci = true, .block = true}};
  static const std::array<Reference, kKinds.size()> references = {
      Reference(host, kKinds[0]), Reference(host, kKinds[1]), Reference(host, kKinds[2]),
      Reference(host, kKinds[3])};
  FuzzInput input(data, size);
  const std::size_t kind = input.byte() % kKinds.size();
  run(host, kKinds[kind], references[kind], input);
  return 0;
}
