// SPDX-License-Identifier: Apache-2.0
#include "boot/boot.h"

#include <algorithm>
#include <cstring>
#include <set>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "arch/x86_64/layout.h"
#include "tests/boot/kernel_builder.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

using namespace testing;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

std::unique_ptr<GuestMemory> memory_of(std::uint64_t size) {
  const std::array ranges = {*GuestRange::create(GuestAddress(0), size)};
  auto memory = GuestMemory::create(ranges, {});
  REQUIRE(memory);
  return std::move(*memory);
}

BootConfig uncached(const std::string& kernel) {
  return {.kernel_path = kernel, .cache = CacheMode::kOff};
}

std::unique_ptr<GuestBoot> opened(const BootConfig& config) {
  auto boot = GuestBoot::open(config);
  if (!boot) {
    FAIL(boot.error().message());
  }
  return std::move(*boot);
}

Error error_of(const BootConfig& config) {
  auto boot = GuestBoot::open(config);
  REQUIRE_FALSE(boot);
  return boot.error();
}

/// What the guest finds `offset` bytes into its kernel.
template <typename T>
T guest_value(const GuestMemory& memory, const LoadReport& report, std::uint64_t offset) {
  return *memory.read_object<T>(GuestAddress(report.kernel_address + offset));
}

template <typename T>
T file_value(const Bytes& bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

TEST_CASE("boot: an ELF kernel is copied, relocated at random, and told its addresses") {
  const TemporaryDirectory directory;
  const ElfKernel kernel = linux_kernel();
  const Bytes& first = kernel.segments[0].content;
  BootConfig config = uncached(directory.file("vmlinux", build_elf(kernel)));
  config.initramfs_path = directory.file("initramfs", pattern(5000, 9));
  std::set<std::uint64_t> physical;
  std::set<std::uint64_t> virtual_bases;
  for (int i = 0; i < 10; ++i) {
    const auto boot = opened(config);
    const auto memory = memory_of(256 * kMiB);
    const auto report = boot->load(*memory, MemoryState::kZero);
    REQUIRE(report);
    CHECK(report->relocated);
    CHECK_FALSE(report->from_cache);
    physical.insert(report->kernel_address);
    virtual_bases.insert(report->virtual_delta);
    const std::uint64_t delta = report->virtual_delta;
    CHECK(guest_value<std::uint64_t>(*memory, *report, 0) == file_value<std::uint64_t>(first, 0));
    CHECK(guest_value<std::uint64_t>(*memory, *report, 8) ==
          file_value<std::uint64_t>(first, 8) + delta);
    CHECK(guest_value<std::uint32_t>(*memory, *report, 0x20) ==
          file_value<std::uint32_t>(first, 0x20) - static_cast<std::uint32_t>(delta));
    CHECK(guest_value<std::uint32_t>(*memory, *report, 0x34) ==
          file_value<std::uint32_t>(first, 0x34) + static_cast<std::uint32_t>(delta));
    CHECK(guest_value<std::uint64_t>(*memory, *report, 0x200010) ==
          file_value<std::uint64_t>(kernel.segments[1].content, 0x10));

    const auto entry = boot->write_boot_params(*memory, layout::kRsdp);
    REQUIRE(entry);
    CHECK(entry->protocol == BootProtocol::kLinux64);
    CHECK(entry->address == GuestAddress(report->kernel_address));
    CHECK(entry->params == layout::kZeroPage);
    const auto page = *memory->read_object<boot_params>(layout::kZeroPage);
    CHECK((page.hdr.loadflags & KASLR_FLAG) != 0);
    CHECK(page.hdr.ramdisk_size == 5000);
    CHECK(memory->read_object<std::uint64_t>(GuestAddress(page.hdr.ramdisk_image)) ==
          file_value<std::uint64_t>(pattern(5000, 9), 0));
    CHECK(page.hdr.ramdisk_image % 4096 == 0);
  }
  CHECK(physical.size() >= 8);
  CHECK(virtual_bases.size() >= 8);
}

TEST_CASE("boot: the seed of the random numbers differs at each boot") {
  const TemporaryDirectory directory;
  const auto boot = opened(uncached(directory.file("vmlinux", build_elf(linux_kernel()))));
  const auto memory = memory_of(64 * kMiB);
  std::set<std::uint64_t> seeds;
  for (int i = 0; i < 4; ++i) {
    REQUIRE(boot->load(*memory, i == 0 ? MemoryState::kZero : MemoryState::kUsed));
    REQUIRE(boot->write_boot_params(*memory, layout::kRsdp));
    seeds.insert(
        *memory->read_object<std::uint64_t>(GuestAddress(layout::kSetupData.value() + 16)));
  }
  CHECK(seeds.size() == 4);
}

TEST_CASE("boot: KASLR is left out where it is forbidden or impossible") {
  const TemporaryDirectory directory;
  ElfKernel kernel = linux_kernel();
  const std::string with_table = directory.file("with", build_elf(kernel));
  kernel.relocations[1] = 5;  // a place outside of the image
  const std::string damaged = directory.file("damaged", build_elf(kernel));
  kernel.relocations.clear();
  const std::string without = directory.file("without", build_elf(kernel));
  const auto memory = memory_of(256 * kMiB);
  const auto load = [&](const BootConfig& config, bool flag) {
    for (int i = 0; i < 3; ++i) {
      const auto boot = opened(config);
      const auto report = boot->load(*memory, MemoryState::kUsed);
      REQUIRE(report);
      CHECK_FALSE(report->relocated);
      CHECK(report->kernel_address == kLinkAddress);
      CHECK(report->virtual_delta == 0);
      REQUIRE(boot->write_boot_params(*memory, layout::kRsdp));
      const auto header = memory->read_object<boot_params>(layout::kZeroPage)->hdr;
      CHECK(((header.loadflags & KASLR_FLAG) != 0) == flag);
    }
  };
  BootConfig off = uncached(with_table);
  off.kaslr = false;
  load(off, false);
  BootConfig word = uncached(with_table);
  word.cmdline = "quiet nokaslr";
  load(word, false);
  // The kernel still randomises its memory regions by itself.
  load(uncached(without), true);
  load(uncached(damaged), true);
}

TEST_CASE("boot: words that take memory away keep the kernel where it was linked") {
  const TemporaryDirectory directory;
  BootConfig config = uncached(directory.file("vmlinux", build_elf(linux_kernel())));
  config.append = "mem=64M";
  const auto memory = memory_of(256 * kMiB);
  for (int i = 0; i < 4; ++i) {
    const auto report = opened(config)->load(*memory, MemoryState::kUsed);
    REQUIRE(report);
    CHECK(report->relocated);
    CHECK(report->kernel_address == kLinkAddress);
  }
}

TEST_CASE("boot: bss is cleared where memory was in use before") {
  const TemporaryDirectory directory;
  BootConfig config = uncached(directory.file("vmlinux", build_elf(linux_kernel())));
  config.kaslr = false;
  const auto boot = opened(config);
  const auto memory = memory_of(64 * kMiB);
  const auto kernel = *memory->slice(GuestAddress(kLinkAddress), 0x300000);
  std::memset(kernel.data(), 0xee, kernel.size());
  REQUIRE(boot->load(*memory, MemoryState::kUsed));
  CHECK(kernel[0x5000] == std::byte{0});
  CHECK(kernel[0x1fffff] == std::byte{0});
  CHECK(kernel[0x200000 + 0x1234] == std::byte{0});
  CHECK(kernel.back() == std::byte{0});
  CHECK(kernel[0x4fff] != std::byte{0xee});
}

TEST_CASE("boot: a bzImage is unpacked, whatever its compression, or enters its own code") {
  const TemporaryDirectory directory;
  const Bytes vmlinux = build_elf(linux_kernel());
  const auto memory = memory_of(64 * kMiB);
  for (const Compression compression :
       {Compression::kLz4, Compression::kZstd, Compression::kGzip, Compression::kXz,
        Compression::kBzip2, Compression::kUnknown}) {
    CAPTURE(compression_name(compression));
    const bool known = compression != Compression::kUnknown;
    BootConfig config =
        uncached(directory.file("bzImage", build_bzimage(compress(vmlinux, compression))));
    const auto report = opened(config)->load(*memory, MemoryState::kUsed);
    REQUIRE(report);
    CHECK(report->unpacked == known);
    CHECK(report->relocated == known);

    config.unpack = false;
    const auto packed = opened(config);
    const auto packed_report = packed->load(*memory, MemoryState::kUsed);
    REQUIRE(packed_report);
    CHECK_FALSE(packed_report->unpacked);
    const auto entry = packed->write_boot_params(*memory, layout::kRsdp);
    CHECK(entry->address == GuestAddress(kLinkAddress + 0x200));
    CHECK(memory->read_object<boot_params>(layout::kZeroPage)->hdr.version == 0x20f);
    CHECK(guest_value<std::uint64_t>(*memory, *packed_report, 0) ==
          file_value<std::uint64_t>(pattern(8, 7), 0));
  }
}

TEST_CASE("boot: a packed kernel is told not to randomise itself where boot.kaslr is off") {
  const TemporaryDirectory directory;
  BootConfig config =
      uncached(directory.file("bzImage", build_bzimage(compress({}, Compression::kUnknown))));
  config.cmdline = "quiet -- init";
  CHECK(opened(config)->cmdline() == "quiet -- init");
  config.kaslr = false;
  CHECK(opened(config)->cmdline() == "quiet nokaslr -- init");
  config.cmdline = "nokaslr";
  CHECK(opened(config)->cmdline() == "nokaslr");
}

TEST_CASE("boot: payloads that are no kernel of ours are refused when loaded") {
  const TemporaryDirectory directory;
  const auto memory = memory_of(64 * kMiB);
  const auto refusal = [&](const Bytes& payload) {
    const auto boot = opened(uncached(directory.file("bzImage", build_bzimage(payload))));
    const auto report = boot->load(*memory, MemoryState::kUsed);
    REQUIRE_FALSE(report);
    CHECK(report.error().code() == ErrorCode::kBadInput);
    CHECK(report.error().message().starts_with("boot.kernel: "));
    return report.error().message();
  };
  const Bytes good = compress(build_elf(linux_kernel()), Compression::kZstd);
  CHECK(refusal(with_declared_size(good, 0x7fffffff)).find("at most") != std::string::npos);
  CHECK(refusal(with_declared_size(good, 100)).find("declares") != std::string::npos);
  CHECK(refusal(compress(pattern(5000), Compression::kGzip)) != "");
  ElfKernel other = linux_kernel();
  other.spoil = [](Elf64_Ehdr& header, auto&) { header.e_machine = EM_386; };
  CHECK(refusal(compress(build_elf(other), Compression::kXz)).find("i386") != std::string::npos);
}

TEST_CASE("boot: a PVH kernel lies where it was linked and gets PVH's start info") {
  const TemporaryDirectory directory;
  const auto boot =
      opened(uncached(directory.file("probe", build_elf(pvh_kernel(kLinkAddress + 16)))));
  CHECK(boot->protocol() == BootProtocol::kPvh);
  CHECK(boot->cmdline().empty());
  const auto memory = memory_of(32 * kMiB);
  const auto report = boot->load(*memory, MemoryState::kZero);
  REQUIRE(report);
  CHECK_FALSE(report->relocated);
  const auto entry = boot->write_boot_params(*memory, layout::kRsdp);
  CHECK(entry->protocol == BootProtocol::kPvh);
  CHECK(entry->address == GuestAddress(kLinkAddress + 16));
  CHECK(entry->params == layout::kPvhStartInfo);
}

TEST_CASE("boot: the command line has the kernel's own limit and is never cut") {
  const TemporaryDirectory directory;
  const Bytes vmlinux = build_elf(linux_kernel());
  BootConfig config = uncached(directory.file("vmlinux", vmlinux));
  config.cmdline = std::string(2047, 'x');
  CHECK(opened(config)->cmdline().size() == 2047);
  config.append = "y";
  const Error over = error_of(config);
  CHECK(over.code() == ErrorCode::kConfig);
  CHECK(over.message().find("2049 bytes") != std::string::npos);
  CHECK(over.message().find("at most 2047") != std::string::npos);

  config = uncached(directory.file(
      "bzImage", build_bzimage(compress(vmlinux, Compression::kLz4),
                               [](setup_header& header) { header.cmdline_size = 255; })));
  config.cmdline = std::string(256, 'x');
  CHECK(error_of(config).message().find("at most 255") != std::string::npos);

  config = uncached(directory.file("probe", build_elf(pvh_kernel())));
  config.cmdline = std::string(65535, 'x');
  CHECK(opened(config)->cmdline().size() == 65535);
  config.cmdline->push_back('x');
  CHECK(error_of(config).message().find("at most 65535") != std::string::npos);
  config.cmdline = std::string("a\0b", 3);
  CHECK(error_of(config).message().find("NUL") != std::string::npos);
}

TEST_CASE("boot: default, replaced, appended and device words of the command line") {
  const TemporaryDirectory directory;
  BootConfig config = uncached(directory.file("vmlinux", build_elf(linux_kernel())));
  config.append = "quiet";
  config.device_arguments = "root=/dev/vda ro";
  CHECK(opened(config)->cmdline().starts_with("console=ttyS0 "));
  CHECK(opened(config)->cmdline().ends_with(" pci=off quiet root=/dev/vda ro"));
  config.has_pci = true;
  CHECK(opened(config)->cmdline().find("pci=off") == std::string::npos);
  config.cmdline = "console=hvc0 -- single";
  CHECK(opened(config)->cmdline() == "console=hvc0 quiet root=/dev/vda ro -- single");
  config.cmdline = "";
  CHECK(opened(config)->cmdline() == "quiet root=/dev/vda ro");
}

TEST_CASE("boot: inputs that do not fit into memory are refused by their size") {
  const TemporaryDirectory directory;
  BootConfig config = uncached(directory.file("vmlinux", build_elf(linux_kernel())));
  const auto refusal = [&](std::uint64_t memory_size) {
    const auto memory = memory_of(memory_size);
    const auto report = opened(config)->load(*memory, MemoryState::kZero);
    return report ? "accepted" : report.error().message();
  };
  CHECK(refusal(18 * kMiB).find("the kernel needs memory up to 19 MiB, and there are 18 MiB") !=
        std::string::npos);
  CHECK(refusal(32 * kMiB) == "accepted");
  config.initramfs_path = directory.file("initramfs", {});
  CHECK(error_of(config).message().find("the file is empty") != std::string::npos);
  // Sparse: only its size counts.
  REQUIRE(::truncate(config.initramfs_path.c_str(), std::int64_t{1} << 40) == 0);
  CHECK(refusal(32 * kMiB).find("initramfs of 1048576 MiB does not fit") != std::string::npos);
}

TEST_CASE("boot: a kernel that is written to meanwhile is refused") {
  const TemporaryDirectory directory;
  const Bytes vmlinux = build_elf(linux_kernel());
  BootConfig config = uncached(directory.file("vmlinux", vmlinux));
  for (const CacheMode mode : {CacheMode::kOff, CacheMode::kDirectory}) {
    config.cache = mode;
    config.cache_directory = directory.path("cache");
    directory.file("vmlinux", vmlinux);
    const auto boot = opened(config);
    REQUIRE(::truncate(config.kernel_path.c_str(), static_cast<off_t>(vmlinux.size() + 4)) == 0);
    const auto memory = memory_of(64 * kMiB);
    const auto report = boot->load(*memory, MemoryState::kZero);
    REQUIRE_FALSE(report);
    CHECK(report.error().message().find("changes while it is read") != std::string::npos);
  }
}

TEST_CASE("boot: what is no readable regular file is refused by what it is") {
  const TemporaryDirectory directory;
  const auto of = [&](const std::string& path) { return error_of(uncached(path)); };
  CHECK(of(directory.path("absent")).code() == ErrorCode::kMissingInput);
  CHECK(of(directory.path("absent")).message() ==
        "boot.kernel: " + directory.path("absent") + ": No such file or directory");
  const std::string file = directory.file("file", pattern(10));
  CHECK(of(file + "/below").code() == ErrorCode::kMissingInput);
  CHECK(of(directory.path(std::string(300, 'x'))).code() == ErrorCode::kMissingInput);
  CHECK(of(directory.path()).message().find("a directory") != std::string::npos);
  CHECK(of("/dev/null").message().find("a device") != std::string::npos);
  REQUIRE(::mkfifo(directory.path("pipe").c_str(), 0600) == 0);
  CHECK(of(directory.path("pipe")).message().find("a pipe") != std::string::npos);
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  std::ranges::copy(directory.path("socket"), address.sun_path);
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  CHECK(of(directory.path("socket")).code() == ErrorCode::kBadInput);
  BootConfig config = uncached(directory.file("vmlinux", build_elf(linux_kernel())));
  config.initramfs_path = directory.path("absent");
  CHECK(error_of(config).message().starts_with("boot.initramfs: "));
}

TEST_CASE("boot: inherited descriptors serve as files, by number and by name") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("vmlinux", build_elf(linux_kernel()));
  const UniqueFd fd(::open(path.c_str(), O_RDONLY));
  const auto memory = memory_of(32 * kMiB);
  const std::string by_number = "fd:" + std::to_string(fd.get());
  REQUIRE(opened(uncached(by_number))->load(*memory, MemoryState::kZero));
  REQUIRE(::fcntl(fd.get(), F_GETFD) >= 0);

  // LISTEN_FDNAMES counts from 3, so the test puts its file behind whatever is open there.
  std::string names = "a";
  for (int i = 4; i <= fd.get(); ++i) {
    names += i == fd.get() ? ":kernel" : ":a";
  }
  if (fd.get() == 3) {
    names = "kernel";
  }
  ::setenv("LISTEN_FDNAMES", names.c_str(), 1);
  ::setenv("LISTEN_FDS", std::to_string(fd.get() - 2).c_str(), 1);
  ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
  opened(uncached("fd:kernel"));
  CHECK(error_of(uncached("fd:other")).code() == ErrorCode::kMissingInput);
  ::setenv("LISTEN_PID", "1", 1);
  CHECK(error_of(uncached("fd:kernel")).message().find("LISTEN_FDNAMES") != std::string::npos);
  ::unsetenv("LISTEN_FDNAMES");

  CHECK(error_of(uncached("fd:987")).code() == ErrorCode::kMissingInput);
  CHECK(error_of(uncached("fd:-1")).code() == ErrorCode::kMissingInput);
  const UniqueFd writer(::open(path.c_str(), O_WRONLY));
  const Error wrong_mode = error_of(uncached("fd:" + std::to_string(writer.get())));
  CHECK(wrong_mode.code() == ErrorCode::kBadInput);
  CHECK(wrong_mode.message().find("not open for reading") != std::string::npos);
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM, 0));
  CHECK(error_of(uncached("fd:" + std::to_string(listener.get()))).message().find("a socket") !=
        std::string::npos);
}

}  // namespace
}  // namespace vireo
