// SPDX-License-Identifier: Apache-2.0
#include "boot/boot.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/mman.h>
#include <sys/random.h>

#include <fmt/core.h>

#include "arch/x86_64/layout.h"
#include "boot/boot_params.h"
#include "boot/default_cmdline.h"
#include "boot/payload.h"
#include "boot/relocate.h"
#include "src/base/log.h"

namespace vireo {

namespace {

constexpr const char* kLog = "boot";

template <typename T>
Result<T> named(Result<T> result, const std::string& what) {
  if (!result) {
    return std::unexpected(std::move(result).error().context(what));
  }
  return result;
}

/// The relocation table of a kernel that may have one; nothing where it does not hold together.
std::optional<RelocationTable> read_relocations(const KernelImage& kernel,
                                                const ByteSource& source) {
  if (kernel.relocations_size == 0) {
    return std::nullopt;
  }
  std::vector<std::uint32_t> words(kernel.relocations_size / sizeof(std::uint32_t));
  if (!source.read(kernel.relocations_offset, std::as_writable_bytes(std::span(words)))) {
    return std::nullopt;
  }
  auto table =
      RelocationTable::create(std::move(words), kernel.virtual_start, kernel.end - kernel.start);
  if (!table) {
    return std::nullopt;
  }
  return std::move(*table);
}

/// `size` bytes of guest memory at an address that was checked when the kernel was placed.
std::span<std::byte> guest_bytes(const GuestMemory& memory, std::uint64_t address,
                                 std::uint64_t size) {
  const auto bytes = memory.slice(GuestAddress(address), size);
  CHECK(bytes.has_value());
  return *bytes;
}

Result<Mapping> allocate(std::uint64_t size) {
  TRY_ASSIGN(Mapping memory,
             Mapping::create(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0,
                             fmt::format("{} MiB to read the kernel", size >> 20)));
  // A hint: large pages save thousands of faults in a buffer that lives for milliseconds.
  ::madvise(memory.data(), memory.size(), MADV_HUGEPAGE);
  return memory;
}

/// Adds the time since `start` and moves `start` to now.
void lap(std::uint64_t& start, std::uint64_t& total) {
  const std::uint64_t now = monotonic_ns();
  total += now - start;
  start = now;
}

}  // namespace

Result<std::unique_ptr<GuestBoot>> GuestBoot::open(const BootConfig& config) {
  TRY_ASSIGN(InputFile kernel_file, InputFile::open(config.kernel_path, "boot.kernel"));
  auto boot = std::unique_ptr<GuestBoot>(new GuestBoot(config, std::move(kernel_file)));
  if (!config.initramfs_path.empty()) {
    TRY_ASSIGN(boot->initramfs_, InputFile::open(config.initramfs_path, "boot.initramfs"));
    if (boot->initramfs_->size() == 0) {
      return fail(ErrorCode::kBadInput,
                  fmt::format("boot.initramfs: {}: the file is empty", config.initramfs_path));
    }
  }
  TRY_ASSIGN(boot->cache_, KernelCache::open(config.cache, config.cache_directory));
  TRY(named(boot->inspect(), "boot.kernel: " + config.kernel_path));
  TRY(boot->compose_cmdline());
  return boot;
}

Result<> GuestBoot::inspect() {
  const ByteSource source = file_source();
  TRY_ASSIGN(const KernelKind kind, identify_kernel(source));
  if (kind == KernelKind::kElf || config_.unpack) {
    if (auto cached = cache_ ? cache_->find(kernel_file_.identity()) : std::nullopt) {
      take_cached(std::move(*cached));
      return {};
    }
  }
  if (kind == KernelKind::kElf) {
    TRY_ASSIGN(kernel_, read_elf_kernel(source, false));
    return {};
  }
  TRY_ASSIGN(const BzImage bzimage, read_bzimage(source));
  kernel_ = packed_kernel(bzimage);
  std::array<std::byte, 16> magic = {};
  if (config_.unpack && bzimage.payload_size >= magic.size()) {
    TRY(source.read(bzimage.payload_offset, magic));
    if (identify_payload(magic) != Compression::kUnknown) {
      kernel_.packed = false;
      to_unpack_ = bzimage;
      return {};
    }
    log_info(kLog, "{}: the payload's compression is not known here; the guest unpacks it",
             kernel_file_.path());
  }
  return {};
}

Result<> GuestBoot::compose_cmdline() {
  const bool linux_kernel = kernel_.protocol == BootProtocol::kLinux64;
  std::string line;
  if (config_.cmdline) {
    line = *config_.cmdline;
  } else if (linux_kernel) {
    line = add_words(std::string(kDefaultLinuxCmdline),
                     config_.has_pci ? std::string_view() : kDefaultNoPciCmdline);
  } else {
    line = kDefaultPvhCmdline;
  }
  line = add_words(add_words(line, config_.append), config_.device_arguments);
  // A kernel that unpacks itself randomises itself too, unless it is told not to.
  if (kernel_.packed && !config_.kaslr && !has_word(line, "nokaslr")) {
    line = add_words(line, "nokaslr");
  }
  const std::uint64_t limit = linux_kernel
                                  ? std::min(kernel_.cmdline_max, layout::kCommandLineMax - 1)
                                  : layout::kCommandLineMax - 1;
  if (line.size() > limit) {
    return fail(ErrorCode::kConfig,
                fmt::format("boot.cmdline: {} bytes, with all that is added to it; this kernel "
                            "takes at most {}",
                            line.size(), limit));
  }
  if (line.find('\0') != std::string::npos) {
    return fail(ErrorCode::kConfig, "boot.cmdline: has a NUL byte in it");
  }
  cmdline_ = std::move(line);
  return {};
}

void GuestBoot::take_cached(CachedKernel cached) {
  kernel_ = cached.kernel;
  cached_ = std::move(cached);
  to_unpack_.reset();
  own_copy_ = Mapping();
}

ByteSource GuestBoot::data_source() const {
  if (cached_) {
    return {cached_->fd.get(), cached_->size};
  }
  return own_copy_.data() != nullptr ? ByteSource(own_copy_.bytes()) : file_source();
}

Result<> GuestBoot::check_settled() const {
  TRY_ASSIGN(const FileIdentity now, kernel_file_.current_identity());
  if (now != kernel_file_.identity()) {
    return fail(ErrorCode::kBadInput, "the file changes while it is read");
  }
  return {};
}

Result<> GuestBoot::unpack(const ByteSource& file) {
  std::vector<std::byte> payload(to_unpack_->payload_size);
  TRY(file.read(to_unpack_->payload_offset, payload));
  TRY_ASSIGN(own_copy_, unpack_payload(payload, identify_payload(payload), kKernelSizeMax));
  TRY_ASSIGN(kernel_, read_elf_kernel(ByteSource(own_copy_.bytes()), true));
  adopt_setup_header(kernel_, *to_unpack_);
  return {};
}

Result<bool> GuestBoot::prepare() {
  if (cached_ || kernel_.packed) {
    return cached_.has_value();
  }
  if (!cache_ || kernel_file_.size() > kKernelSizeMax) {
    if (to_unpack_) {
      TRY(unpack(file_source()));
    }
    return false;
  }
  // What is hashed, checked and kept must be the same bytes, so they are read once.
  TRY_ASSIGN(Mapping copy, allocate(kernel_file_.size()));
  TRY(file_source().read(0, copy.bytes()));
  TRY(check_settled());
  const ByteSource source(copy.bytes());
  const ContentHash content = hash_content(copy.bytes());
  auto cached = cache_->find(content);
  const bool found = cached.has_value();
  if (!found) {
    if (to_unpack_) {
      TRY_ASSIGN(to_unpack_, read_bzimage(source));
      TRY(unpack(source));
    } else {
      TRY_ASSIGN(kernel_, read_elf_kernel(source, false));
      own_copy_ = std::move(copy);
    }
    if (!read_relocations(kernel_, data_source())) {
      kernel_.relocations_size = 0;
    }
    cached = cache_->store(kernel_, data_source(), content);
  }
  if (cached) {
    cache_->remember(kernel_file_.identity(), content);
    take_cached(std::move(*cached));
  }
  // It has had its chance: a later load() may come when paths cannot be resolved any more.
  cache_.reset();
  return found;
}

Result<> GuestBoot::copy_extents(GuestMemory& memory, MemoryState state, LoadReport& report) const {
  const ByteSource source = data_source();
  std::uint64_t end = kernel_.start;
  for (const Extent& extent : kernel_.extents) {
    if (state == MemoryState::kUsed) {
      const auto gap = guest_bytes(memory, end + placement_.physical_delta, extent.address - end);
      std::ranges::fill(gap, std::byte{0});
    }
    TRY(source.read(extent.offset,
                    guest_bytes(memory, extent.address + placement_.physical_delta, extent.size)));
    end = extent.address + extent.size;
    report.bytes_read += extent.size;
  }
  if (state == MemoryState::kUsed) {
    const auto rest = guest_bytes(memory, end + placement_.physical_delta, kernel_.end - end);
    std::ranges::fill(rest, std::byte{0});
  }
  return {};
}

Result<> GuestBoot::load_initramfs(GuestMemory& memory, LoadReport& report) const {
  if (!initramfs_) {
    return {};
  }
  const std::uint64_t address = placement_.initramfs.value();
  memory.populate(placement_.initramfs, initramfs_->size());
  TRY(named(ByteSource(initramfs_->fd(), initramfs_->size())
                .read(0, guest_bytes(memory, address, initramfs_->size())),
            "boot.initramfs: " + initramfs_->path()));
  report.bytes_read += initramfs_->size();
  return {};
}

Result<LoadReport> GuestBoot::load(GuestMemory& memory, MemoryState state) {
  const std::string name = "boot.kernel: " + kernel_file_.path();
  LoadReport report;
  std::uint64_t time = monotonic_ns();
  TRY_ASSIGN(report.from_cache, named(prepare(), name));
  report.unpacked = !kernel_.packed;
  // Not for a kernel that is entered by PVH: it may not be one that can be moved.
  kaslr_ = config_.kaslr && report.unpacked && kernel_.protocol == BootProtocol::kLinux64 &&
           !has_word(cmdline_, "nokaslr");
  const auto table = kaslr_ ? read_relocations(kernel_, data_source()) : std::nullopt;
  if (kaslr_ && !table) {
    log_info(kLog, "{}: carries no relocation table, so its base address is not random",
             kernel_file_.path());
  }
  lap(time, report.prepare_ns);

  CHECK(!memory.regions().empty() && memory.regions().front().range.start() == GuestAddress(0));
  // Words that take memory away from the kernel could take it from under a moved one.
  const bool fixed = has_word(cmdline_, "mem=") || has_word(cmdline_, "memmap=");
  TRY_ASSIGN(placement_,
             named(place_kernel(kernel_,
                                {.ram_end = memory.regions().front().range.end().value(),
                                 .initramfs_size = initramfs_ ? initramfs_->size() : 0,
                                 .random_physical = table.has_value() && !fixed,
                                 .random_virtual = table.has_value()},
                                system_random_below),
                   name));
  const std::uint64_t address = kernel_.start + placement_.physical_delta;
  // Only what is read: pages of bss come at their first touch, and many are never touched.
  for (const Extent& extent : kernel_.extents) {
    memory.populate(GuestAddress(extent.address + placement_.physical_delta), extent.size);
  }
  lap(time, report.populate_ns);
  TRY(named(copy_extents(memory, state, report), name));
  TRY(load_initramfs(memory, report));
  if (!cached_) {
    TRY(named(check_settled(), name));
  }
  lap(time, report.read_ns);
  if (table) {
    table->apply(guest_bytes(memory, address, kernel_.end - kernel_.start),
                 placement_.virtual_delta);
    report.relocated = true;
  }
  own_copy_ = Mapping();
  lap(time, report.relocate_ns);
  report.kernel_address = address;
  report.virtual_delta = placement_.virtual_delta;
  log_debug(kLog, "kernel at {:#x}, virtual base moved by {:#x}", address,
            placement_.virtual_delta);
  return report;
}

Result<EntryPoint> GuestBoot::write_boot_params(GuestMemory& memory, GuestAddress rsdp) const {
  const auto initramfs =
      GuestRange::create(placement_.initramfs, initramfs_ ? initramfs_->size() : 0);
  CHECK(initramfs.has_value());
  BootParams params{.cmdline = cmdline_,
                    .initramfs = *initramfs,
                    .rsdp = rsdp,
                    .setup_header = kernel_.setup_header,
                    .kaslr = kaslr_};
  if (::getrandom(params.rng_seed.data(), params.rng_seed.size(), 0) !=
      static_cast<ssize_t>(params.rng_seed.size())) {
    return fail_errno(errno, "getrandom");
  }
  EntryPoint entry;
  entry.protocol = kernel_.protocol;
  entry.address = GuestAddress(kernel_.entry + placement_.physical_delta);
  entry.params = kernel_.protocol == BootProtocol::kLinux64 ? write_zero_page(memory, params)
                                                            : write_pvh_start_info(memory, params);
  ::explicit_bzero(params.rng_seed.data(), params.rng_seed.size());
  return entry;
}

}  // namespace vireo
