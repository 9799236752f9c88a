// SPDX-License-Identifier: Apache-2.0
// What outlives one input of a target that has devices: a reactor on its thread, and guest memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include <sys/mman.h>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/io/reactor.h"
#include "src/memory/guest_memory.h"
#include "tests/support/reactor_call.h"

namespace vireo {

struct FuzzHost {
  explicit FuzzHost(std::uint64_t memory_size) {
    room = std::move(*Mapping::create(memory_size, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, "guest"));
    memory = GuestMemory::adopt(GuestAddress(0), room.bytes());
    reactor = std::move(*Reactor::create({}));
    thread = std::thread([this] {
      CHECK(reactor->start() && reactor->run() && reactor->drain(1'000'000'000));
      reactor->close();
    });
  }
  ~FuzzHost() {
    reactor->stop();
    thread.join();
  }
  FuzzHost(const FuzzHost&) = delete;
  FuzzHost& operator=(const FuzzHost&) = delete;

  /// Begins something on the reactor's thread, and waits for its end.
  void on_reactor(const std::function<void(Task& done)>& begin) const {
    CHECK(begin_and_wait(*reactor, begin));
  }

  Mapping room;
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<Reactor> reactor;
  std::thread thread;
};

}  // namespace vireo
