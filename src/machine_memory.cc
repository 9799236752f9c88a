// SPDX-License-Identifier: Apache-2.0
// How guest memory comes out of a snapshot.
#include <algorithm>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include <sys/mman.h>

#include <fmt/core.h>

#include "devices/legacy/terminal.h"
#include "src/base/log.h"
#include "src/machine.h"
#include "src/memory/bus_error.h"
#include "src/memory/memory_image.h"
#include "src/memory/userfault.h"
#include "src/snapshot_memory.h"

namespace vireo {

/// Guest memory as it was saved; `source` may be changed to what can be done here.
Result<> Machine::read_memory(RestoreSource& source) {
  const SnapshotFile& snapshot = source.snapshot;
  if (memory_->size() / kImagePage != snapshot.facts().pages) {
    return fail(ErrorCode::kBadInput,
                fmt::format("header: has {} pages of a machine with {}", snapshot.facts().pages,
                            memory_->size() / kImagePage));
  }
  if (source.memory == MemoryMode::kMap) {
    TRY_ASSIGN(const std::vector<PageRun> runs, pages_of(snapshot));
    TRY(map_memory_image(*memory_, source.memory_fd().get(), snapshot.memory().offset, runs));
    // First all of them are asked for, so that the disk has them in one go.
    std::vector<std::span<std::byte>> working_set;
    for (const WorkingSetRun& run : source.working_set) {
      std::ranges::copy(memory_->pages(run.first, run.count), std::back_inserter(working_set));
    }
    for (const std::span<std::byte> part : working_set) {
      ::madvise(part.data(), part.size(), MADV_WILLNEED);
    }
    std::ranges::for_each(working_set, touch);
    return config_.machine.prefault ? memory_->prefault() : Result<>();
  }
  TRY_ASSIGN(MemoryLayer layer, layer_of(snapshot, source.file.get(), source.memory_fd().get()));
  if (source.memory == MemoryMode::kFill) {
    std::string way;
    Result<UniqueFd> userfaultfd =
        standby_ ? std::move(standby_->userfaultfd) : open_userfaultfd(way);
    if (userfaultfd) {
      TRY_ASSIGN(feeder_, PageFeeder::create(std::move(*userfaultfd), *memory_, std::move(layer),
                                             std::move(source.memory_fd()), source.memory_path()));
      // What follows may touch memory, and the sandbox wants to find this thread alone again.
      return feeder_->start({}, {});
    }
    log_info("machine", "memory is read before the guest goes on: {} (see vireo doctor)",
             userfaultfd.error().message());
  }
  return read_memory_image(*memory_, layer);
}

Result<> Machine::start_feeder() {
  return feeder_->start(
      [this] {
        return config_.sandbox.enabled ? narrow_sandbox(SandboxedThread::kFeeder) : Result<>();
      },
      [this] { reactor_->post(memory_there_task_); });
}

void Machine::on_memory_there() {
  if (std::exchange(feeder_, nullptr)) {
    log_info("machine", "all of guest memory is there; its snapshot is not needed any more");
  }
}

}  // namespace vireo
