// SPDX-License-Identifier: Apache-2.0
// Booting a guest kernel, as Machine sees it:
//
//   TRY_ASSIGN(auto boot, GuestBoot::open(config));          // before anything else is created
//   TRY_ASSIGN(LoadReport report, boot->load(memory, MemoryState::kZero));  // any one thread
//   TRY_ASSIGN(EntryPoint entry, boot->write_boot_params(memory, rsdp));    // before the vCPUs
//
// open() finds what can be wrong without unpacking anything, so bad input is one line before a VM
// exists. load() may run on a thread of its own while KVM is set up; nothing else may touch the
// object meanwhile. Both may be repeated after load(), which chooses new random bases each time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "boot/cache.h"
#include "boot/input_file.h"
#include "boot/kernel_image.h"
#include "boot/placement.h"
#include "src/base/address.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/memory/guest_memory.h"

namespace vireo {

struct BootConfig {
  std::string kernel_path;     ///< or fd:N, fd:NAME
  std::string initramfs_path;  ///< empty: none
  /// Replaces the default of the boot mode (boot/default_cmdline.h).
  std::optional<std::string> cmdline;
  std::string append;            ///< added to either
  std::string device_arguments;  ///< vireo's own words, which no setting removes
  bool has_pci = false;          ///< the default command line differs
  CacheMode cache = CacheMode::kAuto;
  std::string cache_directory;  ///< for CacheMode::kDirectory
  bool unpack = true;
  bool kaslr = true;
};

/// Where the first vCPU begins. In both protocols memory is to be mapped one to one: a kernel may
/// lie anywhere below layout::kMmioHoleStart.
struct EntryPoint {
  using Protocol = BootProtocol;
  Protocol protocol = Protocol::kLinux64;
  GuestAddress address;
  GuestAddress params;  ///< zero page (rsi), or PVH start info (ebx)
};

/// Whether guest memory is known to hold zeros (a fresh mapping), so that bss needs no clearing.
enum class MemoryState : std::uint8_t { kZero, kUsed };

struct LoadReport {
  bool from_cache = false;  ///< an entry that was there before
  bool unpacked = false;    ///< entered as vmlinux, not through its own decompressor
  bool relocated = false;   ///< bases chosen at random
  std::uint64_t kernel_address = 0;
  std::uint64_t virtual_delta = 0;
  std::uint64_t bytes_read = 0;
  // Where the time went, in nanoseconds.
  std::uint64_t prepare_ns = 0;  ///< hashing, unpacking, writing the cache
  std::uint64_t populate_ns = 0;
  std::uint64_t read_ns = 0;
  std::uint64_t relocate_ns = 0;
};

class GuestBoot {
 public:
  /// Opens and inspects kernel and initramfs. Errors name the key (boot.kernel …): kMissingInput,
  /// kPermission, kBadInput for what is no kernel of this machine, kConfig for an overlong line.
  static Result<std::unique_ptr<GuestBoot>> open(const BootConfig& config);

  BootProtocol protocol() const { return kernel_.protocol; }
  /// The command line that the guest will get.
  const std::string& cmdline() const { return cmdline_; }

  /// Copies kernel and initramfs to guest memory.
  Result<LoadReport> load(GuestMemory& memory, MemoryState state);

  /// After load().
  Result<EntryPoint> write_boot_params(GuestMemory& memory, GuestAddress rsdp) const;

 private:
  GuestBoot(BootConfig config, InputFile kernel_file)
      : config_(std::move(config)), kernel_file_(std::move(kernel_file)) {}

  Result<> inspect();
  Result<> compose_cmdline();
  void take_cached(CachedKernel cached);
  /// Unpacks what is to be unpacked; true where the cache had it.
  Result<bool> prepare();
  Result<> unpack(const ByteSource& file);
  ByteSource file_source() const { return {kernel_file_.fd(), kernel_file_.size()}; }
  ByteSource data_source() const;
  Result<> check_settled() const;
  Result<> copy_extents(GuestMemory& memory, MemoryState state, LoadReport& report) const;
  Result<> load_initramfs(GuestMemory& memory, LoadReport& report) const;

  BootConfig config_;
  InputFile kernel_file_;
  std::optional<InputFile> initramfs_;
  std::unique_ptr<KernelCache> cache_;
  std::string cmdline_;
  KernelImage kernel_;
  /// Set while kernel_ describes a bzImage whose payload is still to be unpacked.
  std::optional<BzImage> to_unpack_;
  // Where the kernel's bytes are: an entry of the cache, memory of our own, or the file itself.
  std::optional<CachedKernel> cached_;
  Mapping own_copy_;  ///< while load() runs
  bool kaslr_ = false;
  Placement placement_;
};

}  // namespace vireo
