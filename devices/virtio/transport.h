// SPDX-License-Identifier: Apache-2.0
// What both transports have in common: the status machine (virtio 1.2 §2.1), feature negotiation
// (§2.2), the queues' registers and the configuration space (§2.5). A transport proper decodes its
// registers into these calls.
//
// One for each device, owned with it. The calls come from vCPU threads, several at a time, and from
// reactors; one mutex guards the registers, and is never held while waiting. A vCPU that writes
// DRIVER_OK or 0 waits until the reactors of the queues have done it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "devices/virtio/device.h"
#include "devices/virtio/queue.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/base/log.h"
#include "src/io/reactor.h"
#include "src/memory/guest_memory.h"
#include "src/snapshot/snapshot.h"

namespace vireo {

class VirtioTransport final : public VirtioHost {
 public:
  /// What a transport needs beside its device; all of it outlives the transport.
  struct Context {
    VirtioDevice& device;
    GuestMemory& memory;
    VirtioInterrupts& interrupts;
    /// The first is the main thread's, which serves the queues only where there is no other: else
    /// they are dealt to the rest in turn.
    std::span<Reactor* const> reactors;
  };

  static Result<std::unique_ptr<VirtioTransport>> create(const Context& context);
  VirtioTransport(const VirtioTransport&) = delete;
  VirtioTransport& operator=(const VirtioTransport&) = delete;
  ~VirtioTransport() override = default;

  std::uint32_t device_type() const { return device_.type(); }
  unsigned queue_count() const { return static_cast<unsigned>(queues_.size()); }
  /// 32 of the features, from bit 32 * `page` on.
  std::uint32_t device_features(std::uint32_t page) const;
  std::uint32_t driver_features(std::uint32_t page) const;
  /// Ignored from FEATURES_OK on.
  void set_driver_features(std::uint32_t page, std::uint32_t features);

  std::uint8_t status() const;
  /// 0 resets the device; else bits are added, and none is taken away (§2.1.1).
  void write_status(std::uint32_t value);

  /// All zeros for an index beyond the queues.
  QueueConfig queue(std::uint32_t index) const;
  /// Lets `change(QueueConfig&)` change registers of a queue that is not in use. What it makes of
  /// max_size is not taken.
  template <typename Change>
  void configure_queue(std::uint32_t index, Change change) {
    const std::scoped_lock lock(mutex_);
    if (index < queues_.size() && !active_ && !in_transition_) {
      QueueConfig& config = queues_[index]->config;
      const std::uint16_t max_size = config.max_size;
      change(config);
      config.max_size = max_size;
    }
  }

  /// Bytes beyond the configuration space read as zeros.
  void read_config(std::uint64_t offset, std::span<std::byte> data) const;
  std::uint32_t config_generation() const;

  /// The driver notifies queue `index`, where no ioeventfd has taken it.
  void notify(std::uint32_t index);
  /// The eventfd that a notification of queue `index` counts up, for an ioeventfd.
  int kick_fd(unsigned index) const { return queues_[index]->kick.get(); }
  /// Who serves queue `index`.
  Reactor& queue_reactor(unsigned index) const { return *queues_[index]->context.reactor; }

  /// Has all queues stand still: no chain is out, nothing is armed. `done` runs then. On the thread
  /// of the first reactor, while no vCPU runs; the other reactors still run.
  void quiesce(Task& done);
  /// The end of that: the queues are served again, `done` runs. As quiesce(), which came before;
  /// where that is not done yet, behind it.
  void resume(Task& done);
  /// Whether queues are being started or stopped, and have not ended what they had begun. On the
  /// thread of the first reactor.
  bool moving() const { return !transitions_.empty(); }

  /// The device as after create(): the whole machine is reset. While quiet, and no vCPU runs.
  void power_cycle();
  /// What driver and device have made of it, in the sections `index`. As power_cycle().
  void save(SnapshotWriter& writer, unsigned index);
  /// As it was saved, and quiet: resume() follows. The guest's memory and its interrupt controllers
  /// are as they were saved already. As after power_cycle() where it fails. As power_cycle().
  Result<> restore(SnapshotReader& reader, unsigned index);

  // VirtioHost.
  void publish_config(std::span<const std::byte> image) override;
  void needs_reset() override;

 private:
  /// A queue: registers, live ring, and how the first reactor has its own one start and stop it.
  struct Slot {
    void start();
    void stop();
    void stopped();

    VirtioTransport* transport = nullptr;
    QueueConfig config;
    std::unique_ptr<Queue> queue;  // none where the driver does not use it
    QueueHandler::Context context;
    QueueHandler* handler = nullptr;
    UniqueFd kick;
    Task start_task;
    Task stop_task;
    Task stopped_task;
  };

  /// All queues that there are start or stop, each on its own reactor.
  struct Transition {
    Task Slot::* task = nullptr;
    Call* call = nullptr;  // which waits for its end, …
    Task* done = nullptr;  // … or what runs then
  };

  explicit VirtioTransport(const Context& context);

  Result<> restore_driver(SnapshotReader& reader, unsigned index);
  void activate(std::unique_lock<std::mutex>& lock);
  void reset(std::unique_lock<std::mutex>& lock);
  void forget_driver();
  bool create_queues();
  void begin_activate();
  void begin_reset();
  void begin(Transition transition);
  void begin_next();
  void acknowledge();
  void all_acknowledged();

  VirtioDevice& device_;
  GuestMemory& memory_;
  VirtioInterrupts& interrupts_;
  Reactor& first_reactor_;

  mutable std::mutex mutex_;
  std::uint64_t device_features_;
  std::uint64_t driver_features_ = 0;
  std::uint8_t status_ = 0;
  bool active_ = false;         // the handlers have the queues
  bool in_transition_ = false;  // a vCPU waits for reactors
  std::uint32_t config_generation_ = 0;
  std::vector<std::byte> config_;
  std::vector<std::unique_ptr<Slot>> queues_;
  LogLimiter log_limiter_;

  Call activate_call_;
  Call reset_call_;
  // Of the first reactor's thread, but for the count.
  std::atomic<unsigned> unacknowledged_ = 0;  // queues that have not started or stopped yet
  std::deque<Transition> transitions_;        // the first is under way
  Task all_acknowledged_task_;
};

}  // namespace vireo
