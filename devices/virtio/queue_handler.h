// SPDX-License-Identifier: Apache-2.0
// What serves one queue of a device: the loop around it, once for all devices.
//
// Owned by its device; everything here runs on the reactor of the queue. The derived class says in
// serve() what becomes of the chains.
#pragma once

#include <cstdint>
#include <span>

#include "devices/virtio/queue.h"
#include "src/io/rate_limiter.h"
#include "src/io/reactor.h"

namespace vireo {

/// How a transport interrupts the driver. Any thread; never blocks.
class VirtioInterrupts {
 public:
  virtual ~VirtioInterrupts() = default;
  /// Something was used in queue `index`.
  virtual void raise_queue(unsigned index) = 0;
  /// The configuration or the status changed.
  virtual void raise_config() = 0;
};

/// The transport, as its device sees it. Any thread.
class VirtioHost {
 public:
  virtual ~VirtioHost() = default;
  /// From now on the driver reads `image` as the device's configuration; it is told of a change.
  virtual void publish_config(std::span<const std::byte> image) = 0;
  /// Nothing goes on until the driver has reset the device (§2.1.1, DEVICE_NEEDS_RESET).
  virtual void needs_reset() = 0;
};

/// After its queue was found empty, and has nothing in flight, a handler looks for more for
/// kLookNs before it lets the driver notify: a notification costs the guest an exit, and wakes a
/// thread. Each time in a row that nothing comes, it looks half as often.
class QueueHandler : SleepWatcher {
 public:
  static constexpr std::uint64_t kLookNs = 32'000;

  struct Context {
    Queue* queue = nullptr;
    unsigned index = 0;
    int kick_fd = -1;  ///< an eventfd that the driver's notifications count up
    Reactor* reactor = nullptr;
    VirtioInterrupts* interrupts = nullptr;
    VirtioHost* host = nullptr;
  };

  QueueHandler();
  QueueHandler(const QueueHandler&) = delete;
  QueueHandler& operator=(const QueueHandler&) = delete;
  ~QueueHandler() override { CHECK(!running()); }

  /// Begins to serve, first what is in the queue already. What the context names outlives stop().
  void start(const Context& context);
  /// Pops nothing any more; `stopped` runs when every chain is given back and nothing is armed.
  void stop(Task& stopped);
  /// Between start() and the run of stop()'s task.
  bool running() const { return context_.queue != nullptr; }

 protected:
  enum class Served : std::uint8_t {
    kAll,      ///< the queue is empty
    kSome,     ///< and there may be more: the others' turn first
    kBlocked,  ///< the rest waits for tokens
  };

  /// Pops chains, does what they ask for and returns them.
  virtual Served serve() = 0;
  /// Whether an operation of `bytes` bytes may be done now. If not, serve() is called again when it
  /// may, and returns kBlocked meanwhile, having put the chain back.
  bool admit(RateLimiter& limiter, std::uint64_t bytes);

  /// Has what waits for tokens ask again now: the limits are others.
  void retry();

  /// Gives a chain back: from serve(), or later, when what it waited for is done. The driver sees
  /// all of a turn of the reactor at its end, with one interrupt.
  void give_back(DescriptorChain chain, std::uint32_t written);

  Queue& queue() const { return *context_.queue; }
  Reactor& reactor() { return *context_.reactor; }

 private:
  // SleepWatcher.
  std::uint64_t look_until_ns() const override { return look_until_ns_; }
  void look_for_work() override;
  void before_sleep() override;

  void on_kick(Op& op, Completion completion);
  void on_tokens(Op& op, Completion completion);
  void found_empty();
  void serve_again();
  void run();
  void finish_stop();

  Context context_;
  Op kick_op_;
  Op tokens_op_;  // a timeout, while tokens are waited for
  __kernel_timespec tokens_when_ = {};
  std::uint64_t kicks_ = 0;
  Task run_task_;
  Task* stopped_ = nullptr;
  std::uint64_t look_until_ns_ = 0;  // 0: does not look
  std::uint32_t not_looking_ = 0;    // for so many times yet
  std::uint32_t misses_ = 0;         // looked in vain; how often it does not look thereupon
  bool run_pending_ = false;
  bool serving_ = false;
};

}  // namespace vireo
