// SPDX-License-Identifier: Apache-2.0
// A guest without KVM: memory, reactors on threads of their own, and a driver that goes through the
// registers of a transport as a vCPU thread would.
//
//   FakeGuest guest(1);                                   // with one reactor
//   MmioDriver driver(guest, device);
//   driver.begin(kEventIdx);                              // up to DRIVER_OK
//   driver.queue(0).add({{guest.allocate(64), 64, true}});
//   driver.kick(0);
//   const FakeRing::Used used = driver.wait_used(0);
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "devices/virtio/mmio_transport.h"
#include "src/base/endian.h"
#include "src/io/reactor.h"
#include "src/memory/guest_memory.h"
#include "tests/support/catch.h"
#include "tests/support/fake_ring.h"
#include "tests/support/reactor_call.h"

namespace vireo {

inline constexpr std::uint64_t kEventIdx = feature_bit(VIRTIO_RING_F_EVENT_IDX);
inline constexpr std::uint64_t kIndirect = feature_bit(VIRTIO_RING_F_INDIRECT_DESC);

/// An interrupt line that somebody can wait for.
class WaitableInterrupt final : public Interrupt {
 public:
  void raise() override {
    edges_.fetch_add(1);
    edges_.notify_all();
  }
  int edges() const { return edges_.load(); }

 private:
  std::atomic<int> edges_ = 0;
};

class FakeGuest {
 public:
  /// `ring`: of its reactors.
  explicit FakeGuest(unsigned reactors, std::uint64_t memory_size = std::uint64_t{16} << 20,
                     const Ring::Config& ring = {}) {
    Result<Mapping> room = Mapping::create(memory_size, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, "guest");
    REQUIRE(room);
    room_ = std::move(*room);
    memory_ = GuestMemory::adopt(GuestAddress(0), room_.bytes());
    for (unsigned i = 0; i < reactors; ++i) {
      Result<std::unique_ptr<Reactor>> reactor = Reactor::create(ring);
      REQUIRE(reactor);
      reactors_.push_back(reactor->get());
      owned_.push_back(std::move(*reactor));
      threads_.emplace_back([reactor = reactors_.back()] {
        const bool served = reactor->start() && reactor->run() && reactor->drain(kSecond);
        reactor->close();
        if (!served) {
          std::abort();  // Catch is not for other threads
        }
      });
    }
  }
  ~FakeGuest() { stop(); }
  FakeGuest(const FakeGuest&) = delete;
  FakeGuest& operator=(const FakeGuest&) = delete;

  /// Ends the reactors' threads.
  void stop() {
    for (Reactor* const reactor : reactors_) {
      reactor->stop();
    }
    for (std::thread& thread : threads_) {
      thread.join();
    }
    threads_.clear();
    reactors_.clear();
  }

  GuestMemory& memory() { return *memory_; }
  std::span<std::byte> bytes() const { return room_.bytes(); }
  std::span<Reactor* const> reactors() const { return reactors_; }
  /// Begins something on the first reactor's thread, as the machine would, and waits for its end.
  void on_first_reactor(const std::function<void(Task& done)>& begin) {
    REQUIRE(begin_and_wait(*reactors_.front(), begin));
  }
  /// Memory that nobody else has yet; the guest's address.
  std::uint64_t allocate(std::uint64_t size) {
    const std::uint64_t at = (next_ + 4095) & ~std::uint64_t{4095};
    next_ = at + size;
    REQUIRE(next_ <= room_.size());
    return at;
  }

  static constexpr std::uint64_t kSecond = 1'000'000'000;

 private:
  Mapping room_;
  std::unique_ptr<GuestMemory> memory_;
  std::vector<std::unique_ptr<Reactor>> owned_;
  std::vector<Reactor*> reactors_;
  std::vector<std::thread> threads_;
  std::uint64_t next_ = 4096;
};

/// A driver of one device, over whatever transport.
class VirtioDriver {
 public:
  explicit VirtioDriver(FakeGuest& guest) : guest_(guest) {}
  VirtioDriver(const VirtioDriver&) = delete;
  VirtioDriver& operator=(const VirtioDriver&) = delete;
  virtual ~VirtioDriver() = default;

  // What each transport has registers for.
  virtual std::uint64_t offered() = 0;
  virtual void accept(std::uint64_t features) = 0;
  virtual std::uint32_t status() = 0;
  virtual void set_status(std::uint32_t status) = 0;
  virtual void set_up_interrupts() {}
  /// 0: no such queue.
  virtual std::uint16_t max_size(std::uint16_t index) = 0;
  virtual void enable_queue(std::uint16_t index, const QueueConfig& config) = 0;
  virtual void notify(std::uint16_t index) = 0;
  /// A count of those that may be about queue `index`.
  virtual int interrupts(std::uint16_t index) = 0;
  /// Where each of `count` queues is notified.
  virtual void find_queues(std::uint16_t /*count*/) {}
  /// What the interrupts since the last call were for: VIRTIO_MMIO_INT_….
  virtual std::uint32_t acknowledge() = 0;
  virtual VirtioTransport& core() = 0;
  // The transport, and what of the host bus there is with it.
  virtual void save(SnapshotWriter& writer) = 0;
  virtual Result<> restore(SnapshotReader& reader) = 0;

  using Rings = std::vector<std::unique_ptr<FakeRing>>;
  /// The driver is another one from now on.
  Rings take_rings() { return std::exchange(rings_, {}); }
  /// Is the driver of these rings, with a device as one that was saved.
  Result<> go_on(Rings rings, std::span<const SnapshotSection> sections) {
    rings_ = std::move(rings);
    find_queues(static_cast<std::uint16_t>(rings_.size()));
    TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(sections));
    TRY(restore(reader));
    return reader.finish();
  }
  /// §3.1.1, up to DRIVER_OK, with all queues at their greatest size (at most `most`).
  void begin(std::uint64_t features, std::uint16_t most = 1024) {
    negotiate(features);
    set_up_interrupts();
    for (std::uint16_t index = 0; set_up_queue(index, features, most); ++index) {
    }
    set_status(kAlive | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
  }
  void negotiate(std::uint64_t features) {
    set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set_status(kAlive);
    accept(features | feature_bit(VIRTIO_F_VERSION_1));
    set_status(kAlive | VIRTIO_CONFIG_S_FEATURES_OK);
  }
  bool set_up_queue(std::uint16_t index, std::uint64_t features, std::uint16_t most) {
    const std::uint16_t size = std::min(max_size(index), most);
    if (size == 0) {
      return false;
    }
    rings_.push_back(std::make_unique<FakeRing>(
        guest_.memory(), size, GuestAddress(guest_.allocate(FakeRing::footprint(size))), features));
    enable_queue(index, rings_.back()->config());
    return true;
  }
  void reset() {
    set_status(0);
    rings_.clear();
  }

  FakeRing& queue(unsigned index) { return *rings_[index]; }
  /// Publishes what was added, and notifies.
  void kick(unsigned index) {
    queue(index).publish();
    notify(static_cast<std::uint16_t>(index));
  }
  /// The next used chain, asleep until an interrupt when there is none.
  FakeRing::Used wait_used(unsigned number) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    const auto index = static_cast<std::uint16_t>(number);
    FakeRing& ring = queue(index);
    while (true) {
      const int before = interrupts(index);
      ring.set_used_event(ring.used_seen());
      FakeRing::fence();
      if (const std::optional<FakeRing::Used> used = ring.take_used()) {
        return *used;
      }
      while (interrupts(index) == before) {
        if (std::chrono::steady_clock::now() > limit) {
          FAIL("nothing was used, and no interrupt came");
        }
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
      acknowledge();
    }
  }
  /// What a pause does, from outside of the reactors.
  void quiesce() {
    guest_.on_first_reactor([this](Task& done) { core().quiesce(done); });
  }
  void resume() {
    guest_.on_first_reactor([this](Task& done) { core().resume(done); });
  }

 private:
  static constexpr std::uint32_t kAlive = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

  FakeGuest& guest_;
  Rings rings_;
};

/// Over virtio-mmio.
class MmioDriver final : public VirtioDriver {
 public:
  MmioDriver(FakeGuest& guest, VirtioDevice& device, GuestAddress shared_memory = {})
      : VirtioDriver(guest) {
    auto transport =
        MmioTransport::create(device, guest.memory(), guest.reactors(), line_, shared_memory);
    REQUIRE(transport);
    transport_ = std::move(*transport);
  }
  ~MmioDriver() override { reset(); }

  std::uint32_t read(std::uint64_t offset) {
    std::array<std::byte, 4> bytes = {};
    transport_->read(offset, bytes);
    return std::bit_cast<le32>(bytes);
  }
  void write(std::uint64_t offset, std::uint32_t value) {
    transport_->write(offset, std::bit_cast<std::array<std::byte, 4>>(le32(value)));
  }
  void write_address(std::uint64_t low_register, GuestAddress address) {
    write(low_register, low_half(address));
    write(low_register + 4, high_half(address));
  }

  std::uint64_t offered() override {
    std::uint64_t features = 0;
    for (const std::uint32_t page : {1U, 0U}) {
      write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, page);
      features = features << 32 | read(VIRTIO_MMIO_DEVICE_FEATURES);
    }
    return features;
  }
  void accept(std::uint64_t features) override {
    for (const unsigned page : {0U, 1U}) {
      write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
      write(VIRTIO_MMIO_DRIVER_FEATURES, static_cast<std::uint32_t>(features >> (32 * page)));
    }
  }
  std::uint32_t status() override { return read(VIRTIO_MMIO_STATUS); }
  void set_status(std::uint32_t status) override { write(VIRTIO_MMIO_STATUS, status); }
  std::uint16_t max_size(std::uint16_t index) override {
    write(VIRTIO_MMIO_QUEUE_SEL, index);
    return static_cast<std::uint16_t>(read(VIRTIO_MMIO_QUEUE_NUM_MAX));
  }
  void enable_queue(std::uint16_t index, const QueueConfig& config) override {
    write(VIRTIO_MMIO_QUEUE_SEL, index);
    write(VIRTIO_MMIO_QUEUE_NUM, config.size);
    write_address(VIRTIO_MMIO_QUEUE_DESC_LOW, config.desc_table);
    write_address(VIRTIO_MMIO_QUEUE_AVAIL_LOW, config.avail_ring);
    write_address(VIRTIO_MMIO_QUEUE_USED_LOW, config.used_ring);
    write(VIRTIO_MMIO_QUEUE_READY, 1);
  }
  void notify(std::uint16_t index) override { write(VIRTIO_MMIO_QUEUE_NOTIFY, index); }
  int interrupts(std::uint16_t /*index*/) override { return line_.edges(); }
  std::uint32_t acknowledge() override {
    const std::uint32_t causes = read(VIRTIO_MMIO_INTERRUPT_STATUS);
    write(VIRTIO_MMIO_INTERRUPT_ACK, causes);
    return causes;
  }
  VirtioTransport& core() override { return transport_->core(); }
  void save(SnapshotWriter& writer) override { transport_->save(writer, kIndex); }
  Result<> restore(SnapshotReader& reader) override { return transport_->restore(reader, kIndex); }

  WaitableInterrupt& line() { return line_; }
  MmioTransport& transport() { return *transport_; }

 private:
  static constexpr unsigned kIndex = 3;  // of its sections

  WaitableInterrupt line_;
  std::unique_ptr<MmioTransport> transport_;
};

}  // namespace vireo
