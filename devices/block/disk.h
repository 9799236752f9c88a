// SPDX-License-Identifier: Apache-2.0
// What is behind a block device: the bytes of a disk, by operations on io_uring.
//
// A disk belongs to its device. Its operations belong to the requests that they serve, and run on
// the reactor that began them; several reactors use one disk at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <sys/uio.h>

#include "devices/block/disk_file.h"
#include "src/base/error.h"
#include "src/io/ring.h"

namespace vireo {

class Disk;
struct OverlayBacking;

/// One read, write, flush … on its way through a disk, one step after the other. In flight from
/// Disk::start() until its callback.
class DiskOp {
 public:
  enum class Kind : std::uint8_t { kRead, kWrite, kFlush, kDiscard, kWriteZeroes, kGrow };

  DiskOp() { op_.bind<DiskOp, &DiskOp::on_completion>(this); }
  DiskOp(const DiskOp&) = delete;
  DiskOp& operator=(const DiskOp&) = delete;
  ~DiskOp() = default;

  /// Names what is called at the end, with 0 or an errno.
  template <typename T, void (T::*Member)(DiskOp&, int)>
  void bind(T* owner) {
    owner_ = owner;
    done_ = [](DiskOp& op, int errnum) { (static_cast<T*>(op.owner_)->*Member)(op, errnum); };
  }

  // What is asked for. Set by the owner, and left alone until the end; bytes, within the disk.
  Kind kind = Kind::kFlush;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;   ///< kGrow: the size that the disk will have, durably
  std::vector<iovec> pieces;  ///< kRead, kWrite: guest memory, `length` bytes in all
  bool unmap = false;         ///< kWriteZeroes: may give the room back to the host
  bool alone = false;  ///< kRead: nothing else is asked for, with which it could be submitted

  // For the disk: where it is, and what it can do next. One at a time; Disk::proceed() at its end.
  unsigned step = 0;
  std::uint64_t position = 0;
  std::vector<std::byte> scratch;

  /// `length` bytes of `file` at `file_offset`, from or to the pieces from their byte `from` on. A
  /// file that ends before is EIO.
  void transfer(Ring& ring, const DiskFile& file, std::uint64_t file_offset, std::uint64_t from,
                std::uint64_t length);
  /// The same with memory of the disk's own, which stays until the step has ended.
  void read(Ring& ring, const DiskFile& file, std::uint64_t file_offset, std::span<std::byte> to);
  void write(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
             std::span<const std::byte> from);
  /// Zeros by plain writes, for a file system that knows no better.
  void write_zeros(Ring& ring, const DiskFile& file, std::uint64_t file_offset,
                   std::uint64_t length);
  void fdatasync(Ring& ring, const DiskFile& file);
  void fallocate(Ring& ring, const DiskFile& file, int mode, std::uint64_t file_offset,
                 std::uint64_t length);
  /// The end: `errnum` is for the owner.
  void finish(int errnum) { done_(*this, errnum); }

 private:
  friend class Disk;

  struct FreeAligned {
    void operator()(std::byte* memory) const;
  };

  void begin_transfer(Ring& ring, const DiskFile& file, bool writes, std::uint64_t file_offset);
  bool needs_bounce() const;
  bool read_at_once();
  bool write_at_once();
  void submit();
  void submit_bounced();
  void on_completion(Op& op, Completion completion);
  void advance(std::uint64_t count);
  void end_step(int errnum);

  void* owner_ = nullptr;
  void (*done_)(DiskOp&, int) = nullptr;
  Disk* disk_ = nullptr;
  Op op_;

  // The step.
  Ring* ring_ = nullptr;
  const DiskFile* file_ = nullptr;
  bool transfers_ = false;
  bool writes_ = false;
  bool guests_ = false;  // the bytes are the guest's
  std::uint64_t file_offset_ = 0;
  std::uint64_t remaining_ = 0;
  std::vector<iovec> rest_;  // what is still to be moved, from first_ on
  std::size_t first_ = 0;
  // Where the guest's memory is not aligned as direct I/O wants it.
  std::unique_ptr<std::byte, FreeAligned> bounce_;
};

class Disk {
 public:
  Disk() = default;
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;
  virtual ~Disk() = default;

  /// Bytes; a multiple of the block size. Not while a kGrow is on its way.
  virtual std::uint64_t size() const = 0;
  /// Takes the size that it has now: a file may have been changed from outside.
  virtual Result<> measure() { return {}; }
  /// Whether a kGrow to `bytes` can be: what is wrong with them, kConfig.
  virtual Result<> check_growth(std::uint64_t bytes) const = 0;
  /// What operations have to be multiples of, and what they had better be.
  virtual const BlockLimits& limits() const = 0;
  /// Whether all its operations have to be on one reactor.
  virtual bool one_reactor() const { return false; }
  /// Whether it holds back what a last flush would write, for want of which it would be lost with
  /// this process.
  virtual bool wants_flush() const { return false; }
  /// The descriptor of the file that its writes go to.
  virtual int written_file() const = 0;
  /// That of the file below it, where there is one; else -1.
  virtual int base_file() const { return -1; }
  /// Gives its files away, for an overlay to lie over: of no use any more. Nothing is in flight or
  /// held back.
  virtual OverlayBacking freeze() = 0;
  /// A flush failed: what was written before it may be gone, and the kernel tells so but once. No
  /// flush succeeds any more. Any thread.
  bool flush_failed() const { return flush_failed_.load(std::memory_order_relaxed); }
  void set_flush_failed() { flush_failed_.store(true, std::memory_order_relaxed); }

  /// Begins `op`. Its callback runs on this thread, maybe before this returns.
  void start(DiskOp& op, Ring& ring) {
    op.disk_ = this;
    op.step = 0;
    op.position = 0;
    begin(op, ring);
  }

 protected:
  virtual void begin(DiskOp& op, Ring& ring) = 0;
  /// The step that begin() or proceed() asked for has ended: the next one, or finish().
  virtual void proceed(DiskOp& op, Ring& ring, int errnum) = 0;

 private:
  friend class DiskOp;

  // How the kernel writes to the page cache of this file, as it was found out.
  enum class Buffered : std::uint8_t { kUnknown, kBegins, kWaits };

  std::atomic<bool> flush_failed_ = false;
  std::atomic<Buffered> buffered_ = Buffered::kUnknown;
  std::atomic<std::uint64_t> not_before_ns_ = 0;  // no write at once: one took long
  std::atomic<std::uint32_t> not_cached_ = 0;     // so many reads more are the ring's
};

}  // namespace vireo
