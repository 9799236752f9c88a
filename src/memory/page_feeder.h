// SPDX-License-Identifier: Apache-2.0
// Brings the pages of a memory layer while the guest runs: those that somebody touches at once
// (userfaultfd(2)), all others behind them. Then memory is the process's own, in huge pages where
// it is dense, and the file not needed any more.
//
// Its thread takes no lock of anybody's, waits for none, and touches guest memory by UFFDIO_COPY
// alone: whoever waits for a page, KVM and io_uring included, gets it. While it does not run,
// nobody may touch guest memory. What is given back (MADV_DONTNEED) meanwhile would come back as it
// was: nobody does that before this is gone.
//
// A page that cannot be had, or is damaged, ends the process with one line (bus_error.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/memory/guest_memory.h"
#include "src/memory/memory_layer.h"

namespace vireo {

class PageFeeder {
 public:
  /// Of `memory`, which is new and outlives it; its pages are not reserved ones. `userfaultfd` is
  /// of open_userfaultfd(), `file` that of `layer`, called `name`. Errors: kSystem.
  static Result<std::unique_ptr<PageFeeder>> create(UniqueFd userfaultfd, GuestMemory& memory,
                                                    MemoryLayer layer, UniqueFd file,
                                                    std::string name);
  PageFeeder(const PageFeeder&) = delete;
  PageFeeder& operator=(const PageFeeder&) = delete;
  /// What is not there yet reads as zeros from here on.
  ~PageFeeder();

  /// Starts its thread, which runs `begins` first; returns when that is done, with its error.
  /// `done` is called there when all pages are there.
  Result<> start(const std::function<Result<>()>& begins, std::function<void()> done);
  /// Ends it: what is not there yet waits for the next start().
  void stop();

 private:
  PageFeeder(UniqueFd userfaultfd, GuestMemory& memory, MemoryLayer layer, UniqueFd file,
             std::string name);

  Result<> watch();
  Result<> serve();
  Result<bool> serve_faults();
  Result<> bring_page(std::uint64_t address);
  Result<> bring(std::size_t piece);
  Result<> copy(std::span<std::byte> to, std::span<const std::byte> from);
  Result<> put_zeros(std::span<std::byte> bytes);
  void finish();

  UniqueFd userfaultfd_;
  GuestMemory& memory_;
  const MemoryLayer layer_;
  UniqueFd file_;
  const std::string name_;
  std::vector<LayerPiece> pieces_;
  std::vector<std::span<std::byte>> watched_;
  std::function<void()> done_;
  std::thread thread_;
  std::atomic<bool> stopping_ = false;
  // Of the thread.
  LayerReader reader_;
  std::vector<std::byte> buffer_;
  std::vector<bool> brought_;  // by piece
  std::size_t next_ = 0;       // piece, in the background
};

}  // namespace vireo
