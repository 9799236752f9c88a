// SPDX-License-Identifier: Apache-2.0
#include "devices/virtio/transport.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>

#include "devices/virtio/transport_state.h"
#include "devices/virtio/uapi.h"

namespace vireo {

namespace {

/// What every queue of ours can (§6).
constexpr std::uint64_t kRingFeatures = feature_bit(VIRTIO_F_VERSION_1) |
                                        feature_bit(VIRTIO_RING_F_INDIRECT_DESC) |
                                        feature_bit(VIRTIO_RING_F_EVENT_IDX);

/// Who serves queue `index`.
Reactor* reactor_of(std::span<Reactor* const> reactors, unsigned index) {
  return reactors.size() == 1 ? reactors[0] : reactors[1 + index % (reactors.size() - 1)];
}

std::uint32_t page_of(std::uint64_t features, std::uint32_t page) {
  return page < 2 ? static_cast<std::uint32_t>(features >> (32 * page)) : 0;
}

}  // namespace

Result<std::unique_ptr<VirtioTransport>> VirtioTransport::create(const Context& context) {
  auto transport = std::unique_ptr<VirtioTransport>(new VirtioTransport(context));
  for (const auto& slot : transport->queues_) {
    TRY_ASSIGN(slot->kick, create_eventfd());
    slot->context.kick_fd = slot->kick.get();
  }
  return transport;
}

VirtioTransport::VirtioTransport(const Context& context)
    : device_(context.device),
      memory_(context.memory),
      interrupts_(context.interrupts),
      first_reactor_(*context.reactors.front()),
      device_features_(context.device.features() | kRingFeatures) {
  activate_call_.bind<VirtioTransport, &VirtioTransport::begin_activate>(this);
  reset_call_.bind<VirtioTransport, &VirtioTransport::begin_reset>(this);
  all_acknowledged_task_.bind<VirtioTransport, &VirtioTransport::all_acknowledged>(this);
  const std::span<const std::byte> config = device_.config();
  config_.assign(config.begin(), config.end());
  for (const std::uint16_t max_size : device_.queue_max_sizes()) {
    const auto index = static_cast<unsigned>(queues_.size());
    auto slot = std::make_unique<Slot>();
    slot->transport = this;
    slot->config.max_size = max_size;
    slot->handler = &device_.queue_handler(index);
    slot->context = {.index = index,
                     .reactor = reactor_of(context.reactors, index),
                     .interrupts = &interrupts_,
                     .host = this};
    slot->start_task.bind<Slot, &Slot::start>(slot.get());
    slot->stop_task.bind<Slot, &Slot::stop>(slot.get());
    slot->stopped_task.bind<Slot, &Slot::stopped>(slot.get());
    queues_.push_back(std::move(slot));
  }
}

// Features
// ---------------------------------------------------------------------------------------

std::uint32_t VirtioTransport::device_features(std::uint32_t page) const {
  const std::scoped_lock lock(mutex_);
  return page_of(device_features_, page);
}

std::uint32_t VirtioTransport::driver_features(std::uint32_t page) const {
  const std::scoped_lock lock(mutex_);
  return page_of(driver_features_, page);
}

void VirtioTransport::set_driver_features(std::uint32_t page, std::uint32_t features) {
  const std::scoped_lock lock(mutex_);
  if (page < 2 && (status_ & VIRTIO_CONFIG_S_FEATURES_OK) == 0) {
    const unsigned shift = 32 * page;
    driver_features_ &= ~(std::uint64_t{0xffffffff} << shift);
    driver_features_ |= std::uint64_t{features} << shift;
  }
}

// The status machine
// ----------------------------------------------------------------------------

std::uint8_t VirtioTransport::status() const {
  const std::scoped_lock lock(mutex_);
  return status_;
}

void VirtioTransport::write_status(std::uint32_t value) {
  std::unique_lock lock(mutex_);
  if (in_transition_) {
    return;  // another vCPU is waiting for the end of one
  }
  if (value == 0) {
    reset(lock);
    return;
  }
  const std::uint32_t added = value & ~std::uint32_t{status_};
  status_ |=
      added & (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FAILED);
  // §2.2.2: a driver that wants what was not offered, or speaks the legacy interface, reads back
  // that this bit is not set.
  if ((added & VIRTIO_CONFIG_S_FEATURES_OK) != 0 && (driver_features_ & ~device_features_) == 0 &&
      (driver_features_ & feature_bit(VIRTIO_F_VERSION_1)) != 0) {
    status_ |= VIRTIO_CONFIG_S_FEATURES_OK;
  }
  if ((added & VIRTIO_CONFIG_S_DRIVER_OK) != 0 && (status_ & VIRTIO_CONFIG_S_FEATURES_OK) != 0) {
    activate(lock);
  }
}

void VirtioTransport::activate(std::unique_lock<std::mutex>& lock) {
  if (!create_queues()) {
    log_guest(log_limiter_, "virtio", "device type {}: the driver set up a queue that cannot be",
              device_.type());
    status_ |= VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET;
    lock.unlock();
    interrupts_.raise_config();
    return;
  }
  in_transition_ = true;
  const std::uint64_t features = driver_features_;
  lock.unlock();
  device_.activate(features);
  const bool started = first_reactor_.call_and_wait(activate_call_);
  lock.lock();
  in_transition_ = false;
  if (started) {
    active_ = true;
    status_ |= VIRTIO_CONFIG_S_DRIVER_OK;
  }
}

/// The live rings of all queues that are ready; none where one of them cannot be.
bool VirtioTransport::create_queues() {
  for (const auto& slot : queues_) {
    if (slot->config.ready) {
      slot->queue = Queue::create(slot->config, driver_features_, memory_);
      slot->context.queue = slot->queue.get();
      if (slot->queue == nullptr) {
        for (const auto& made : queues_) {
          made->queue.reset();
        }
        return false;
      }
    }
  }
  return true;
}

void VirtioTransport::reset(std::unique_lock<std::mutex>& lock) {
  if (active_) {
    in_transition_ = true;
    lock.unlock();
    const bool stopped = first_reactor_.call_and_wait(reset_call_);
    if (stopped) {
      for (const auto& slot : queues_) {
        slot->queue.reset();
      }
      device_.reset();
    }
    lock.lock();
    in_transition_ = false;
    if (!stopped) {
      return;  // the machine ends meanwhile
    }
    active_ = false;
  }
  forget_driver();
}

void VirtioTransport::forget_driver() {
  for (const auto& slot : queues_) {
    slot->config = {.max_size = slot->config.max_size};
  }
  status_ = 0;
  driver_features_ = 0;
}

void VirtioTransport::power_cycle() {
  const std::scoped_lock lock(mutex_);
  for (const auto& slot : queues_) {
    slot->queue.reset();
  }
  if (std::exchange(active_, false)) {
    device_.reset();
  }
  forget_driver();
}

// Snapshots
// --------------------------------------------------------------------------------------

void VirtioTransport::save(SnapshotWriter& writer, unsigned index) {
  const std::scoped_lock lock(mutex_);
  CHECK(!in_transition_);
  VirtioState state = {.device_type = device_.type(),
                       .device_features = device_features_,
                       .driver_features = driver_features_,
                       .status = status_,
                       .active = active_,
                       .config_generation = config_generation_,
                       .config = config_,
                       .queues = {}};
  for (const auto& slot : queues_) {
    state.queues.push_back(
        {.config = slot->config, .state = slot->queue ? slot->queue->state() : QueueState{}});
  }
  writer.add(index, std::move(state));
  device_.save(writer, index);
}

Result<> VirtioTransport::restore(SnapshotReader& reader, unsigned index) {
  if (Result<> restored = restore_driver(reader, index); !restored) {
    power_cycle();
    return restored;
  }
  // What the driver had last read may not be so any more.
  const std::span<const std::byte> config = device_.config();
  if (!std::ranges::equal(config, config_)) {
    publish_config(config);
  }
  return {};
}

Result<> VirtioTransport::restore_driver(SnapshotReader& reader, unsigned index) {
  TRY_ASSIGN(const VirtioState state, reader.take<VirtioState>(index));
  const std::uint64_t offered = device_.features() | kRingFeatures;
  if (state.device_type != device_.type() || state.queues.size() != queues_.size() ||
      state.config.size() != device_.config().size()) {
    return bad_section<VirtioState>(
        index, fmt::format("is of a device of type {} with {} queues and a configuration space of "
                           "{} bytes, and here is one of type {} with {} and {}",
                           state.device_type, state.queues.size(), state.config.size(),
                           device_.type(), queues_.size(), device_.config().size()));
  }
  if ((state.device_features & ~offered) != 0) {
    return bad_section<VirtioState>(
        index, fmt::format("offers features {:#x}, which the device here has not",
                           state.device_features & ~offered));
  }
  if (!has_possible_status(state)) {
    return bad_section<VirtioState>(
        index, fmt::format("has a status of {:#x} that no driver comes to", state.status));
  }
  const std::scoped_lock lock(mutex_);
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    const auto& [config, ring] = state.queues[i];
    Slot& slot = *queues_[i];
    if (config.max_size == 0 || config.max_size > slot.config.max_size) {
      return bad_section<VirtioState>(
          index, fmt::format("has a queue of up to {} entries, and the device here {}",
                             config.max_size, slot.config.max_size));
    }
    if (state.active && config.ready) {
      slot.queue = Queue::create(config, state.driver_features, memory_, ring);
      slot.context.queue = slot.queue.get();
      if (slot.queue == nullptr) {
        return bad_section<VirtioState>(index, fmt::format("has queue {} as no queue can be", i));
      }
    }
  }
  TRY(device_.restore(reader, index, state.config));
  // Nothing fails from here on.
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    queues_[i]->config = state.queues[i].config;
  }
  device_features_ = state.device_features;
  driver_features_ = state.driver_features;
  status_ = state.status;
  config_generation_ = state.config_generation;
  config_ = state.config;
  active_ = state.active;
  if (active_) {
    device_.activate(driver_features_);
  }
  return {};
}

// Starting and stopping the queues, each on its own reactor
// -----------------------------------------------

void VirtioTransport::begin_activate() {
  begin({.task = &Slot::start_task, .call = &activate_call_});
}

void VirtioTransport::begin_reset() {
  begin({.task = &Slot::stop_task, .call = &reset_call_});
}

void VirtioTransport::quiesce(Task& done) {
  begin({.task = &Slot::stop_task, .done = &done});
}

void VirtioTransport::resume(Task& done) {
  begin({.task = &Slot::start_task, .done = &done});
}

/// One after the other: what a vCPU has begun that is gone, or a stop that a disk holds up.
void VirtioTransport::begin(Transition transition) {
  transitions_.push_back(transition);
  if (transitions_.size() == 1) {
    begin_next();
  }
}

void VirtioTransport::begin_next() {
  // One more, so that they cannot be all before each was asked.
  unacknowledged_ = 1;
  for (const auto& slot : queues_) {
    if (slot->queue != nullptr) {
      unacknowledged_.fetch_add(1);
      slot->context.reactor->post((*slot).*transitions_.front().task);
    }
  }
  acknowledge();
}

void VirtioTransport::acknowledge() {
  if (unacknowledged_.fetch_sub(1) == 1) {
    first_reactor_.post(all_acknowledged_task_);
  }
}

void VirtioTransport::all_acknowledged() {
  const Transition ended = transitions_.front();
  transitions_.pop_front();
  if (!transitions_.empty()) {
    begin_next();
  }
  if (ended.done != nullptr) {
    first_reactor_.post(*ended.done);
  } else {
    ended.call->finish();  // last: a vCPU that waited for it goes on
  }
}

void VirtioTransport::Slot::start() {
  handler->start(context);
  transport->acknowledge();
}

void VirtioTransport::Slot::stop() {
  if (handler->running()) {
    handler->stop(stopped_task);
  } else {
    stopped();  // quiet already
  }
}

void VirtioTransport::Slot::stopped() {
  transport->acknowledge();
}

// Queues and configuration
// ----------------------------------------------------------------------

QueueConfig VirtioTransport::queue(std::uint32_t index) const {
  const std::scoped_lock lock(mutex_);
  return index < queues_.size() ? queues_[index]->config : QueueConfig{};
}

void VirtioTransport::notify(std::uint32_t index) {
  if (index < queues_.size()) {
    signal_eventfd(queues_[index]->kick.get());
  }
}

void VirtioTransport::read_config(std::uint64_t offset, std::span<std::byte> data) const {
  const std::scoped_lock lock(mutex_);
  std::ranges::fill(data, std::byte{0});
  if (offset < config_.size()) {
    const std::span present = std::span(config_).subspan(offset);
    std::ranges::copy(present.first(std::min(present.size(), data.size())), data.begin());
  }
}

std::uint32_t VirtioTransport::config_generation() const {
  const std::scoped_lock lock(mutex_);
  return config_generation_;
}

void VirtioTransport::publish_config(std::span<const std::byte> image) {
  std::unique_lock lock(mutex_);
  config_.assign(image.begin(), image.end());
  ++config_generation_;
  const bool tell = (status_ & VIRTIO_CONFIG_S_DRIVER_OK) != 0;
  lock.unlock();
  if (tell) {
    interrupts_.raise_config();
  }
}

void VirtioTransport::needs_reset() {
  std::unique_lock lock(mutex_);
  const bool tell = (status_ & VIRTIO_CONFIG_S_NEEDS_RESET) == 0;
  status_ |= VIRTIO_CONFIG_S_NEEDS_RESET;
  lock.unlock();
  if (tell) {
    interrupts_.raise_config();
  }
}

}  // namespace vireo
