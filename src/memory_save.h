// SPDX-License-Identifier: Apache-2.0
// Guest memory on its way into a file: rounds of MemoryImageWriter, on several threads at a time.
//
// On the reactor's thread, but for the work itself. It does not end before its round.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <functional>

#include "src/base/error.h"
#include "src/io/offload.h"
#include "src/io/reactor.h"
#include "src/memory/memory_image.h"

namespace vireo {

class MemorySave {
 public:
  /// As many threads at most.
  static constexpr unsigned kThreads = 4;
  using Done = std::function<void(Result<>)>;

  /// `reactor` and `offload` outlive it.
  MemorySave(Reactor& reactor, Offload& offload, MemoryImageWriter image);
  MemorySave(const MemorySave&) = delete;
  MemorySave& operator=(const MemorySave&) = delete;
  ~MemorySave() = default;

  /// Takes `pages`, which stay as they are meanwhile. One round at a time.
  void round(const PageSet& pages, Done done);
  /// Not during a round.
  const MemoryImageWriter& image() const { return image_; }

 private:
  enum class Part : std::uint8_t { kExamine, kWrite };

  struct Worker {
    OffloadJob job;
    MemorySave* save = nullptr;
    Result<> work() { return save->work(); }
    void done(Result<> result) { save->worker_done(std::move(result)); }
  };

  void begin(Part part);
  Result<> work();
  void worker_done(Result<> result);
  void part_done();

  Reactor& reactor_;
  Offload& offload_;
  MemoryImageWriter image_;
  std::array<Worker, kThreads> workers_;
  Part part_ = Part::kExamine;
  std::atomic<std::size_t> next_piece_ = 0;
  unsigned working_ = 0;
  Result<> result_;
  Done done_;
};

}  // namespace vireo
