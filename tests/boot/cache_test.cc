// SPDX-License-Identifier: Apache-2.0
#include "boot/cache.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/core.h>

#include "boot/boot.h"
#include "tests/boot/kernel_builder.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

using namespace testing;
namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

std::unique_ptr<GuestMemory> small_memory() {
  const std::array ranges = {*GuestRange::create(GuestAddress(0), 64 * kMiB)};
  auto memory = GuestMemory::create(ranges, {});
  REQUIRE(memory);
  return std::move(*memory);
}

BootConfig config_of(const std::string& kernel, const std::string& cache) {
  return {.kernel_path = kernel,
          .cache = CacheMode::kDirectory,
          .cache_directory = cache,
          .kaslr = false};
}

Result<LoadReport> boot_once(const BootConfig& config, GuestMemory& memory) {
  TRY_ASSIGN(const auto boot, GuestBoot::open(config));
  return boot->load(memory, MemoryState::kUsed);
}

LoadReport booted(const BootConfig& config) {
  const auto memory = small_memory();
  const auto report = boot_once(config, *memory);
  if (!report) {
    FAIL(report.error().message());
  }
  return *report;
}

std::vector<std::string> names(const std::string& directory, const std::string& prefix) {
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().filename().string().starts_with(prefix)) {
      found.push_back(entry.path());
    }
  }
  return found;
}

/// A kernel of about `size` bytes that differs from others by its seed.
Bytes kernel_of(std::size_t size, std::uint32_t seed) {
  ElfKernel kernel = linux_kernel();
  kernel.segments[0].content = pattern(size, seed);
  kernel.segments[1].address = kLinkAddress + 0x400000;
  return build_elf(kernel);
}

TEST_CASE("cache: what comes out of it is what went in") {
  const TemporaryDirectory directory;
  ElfKernel kernel = linux_kernel();
  // Zeros within: a long run is left out, a short one is not worth it; nothing is page-aligned.
  Bytes& content = kernel.segments[0].content;
  content = pattern(0x100123);
  std::fill(content.begin() + 0x10100, content.begin() + 0x80fff, std::byte{0});
  std::fill(content.begin() + 0x90000, content.begin() + 0x93000, std::byte{0});
  kernel.segments[1].address += 0x123;
  const Bytes vmlinux = build_elf(kernel);
  const std::string elf = directory.file("vmlinux", vmlinux);
  const std::string packed =
      directory.file("bzImage", build_bzimage(compress(vmlinux, Compression::kZstd)));
  for (const std::string& path : {elf, packed}) {
    BootConfig config = config_of(path, directory.path("cache"));
    const auto load = [&](CacheMode mode, LoadReport& report) {
      config.cache = mode;
      auto memory = small_memory();
      auto result = boot_once(config, *memory);
      REQUIRE(result);
      report = *result;
      return memory;
    };
    LoadReport plain;
    LoadReport first;
    LoadReport second;
    const auto expected = load(CacheMode::kOff, plain);
    const auto cold = load(CacheMode::kDirectory, first);
    const auto warm = load(CacheMode::kDirectory, second);
    CHECK_FALSE(plain.from_cache);
    CHECK_FALSE(first.from_cache);
    CHECK(second.from_cache);
    CHECK(second.unpacked);
    CHECK(second.bytes_read < plain.bytes_read - 0x60000);
    const auto bytes = [](const std::unique_ptr<GuestMemory>& memory) {
      return memory->regions()[0].host;
    };
    CHECK(std::ranges::equal(bytes(expected), bytes(cold)));
    CHECK(std::ranges::equal(bytes(expected), bytes(warm)));
  }
  CHECK(names(directory.path("cache"), "k-").size() == 2);
  CHECK(names(directory.path("cache"), "t-").empty());
}

TEST_CASE("cache: KASLR works from it, and anew at each boot") {
  const TemporaryDirectory directory;
  BootConfig config =
      config_of(directory.file("vmlinux", build_elf(linux_kernel())), directory.path("cache"));
  config.kaslr = true;
  booted(config);
  const LoadReport second = booted(config);
  CHECK(second.from_cache);
  CHECK(second.relocated);
  bool moved = second.virtual_delta != 0;
  for (int i = 0; i < 5 && !moved; ++i) {
    moved = booted(config).virtual_delta != 0;
  }
  CHECK(moved);
}

TEST_CASE("cache: a settled file is found without being read, a changed one is not") {
  const TemporaryDirectory directory;
  const auto packed = [](std::uint32_t seed) {
    return build_bzimage(compress(kernel_of(0x5000, seed), Compression::kZstd));
  };
  BootConfig config = config_of(directory.file("bzImage", packed(1)), directory.path("cache"));
  booted(config);
  // Too young: its times might stay the same over another change.
  CHECK(names(config.cache_directory, "i-").empty());
  std::this_thread::sleep_for(std::chrono::milliseconds(2100));
  booted(config);
  CHECK(names(config.cache_directory, "i-").size() == 1);
  CHECK(booted(config).from_cache);
  // What the cache has is unpacked, so it is not what this asks for.
  config.unpack = false;
  CHECK_FALSE(booted(config).unpacked);
  config.unpack = true;

  directory.file("bzImage", packed(2));
  CHECK_FALSE(booted(config).from_cache);
  CHECK(names(config.cache_directory, "k-").size() == 2);
}

TEST_CASE("cache: a link by identity is followed, and only to an entry") {
  const TemporaryDirectory directory;
  const auto cache = KernelCache::open(CacheMode::kDirectory, directory.path("cache"));
  REQUIRE(cache);
  const Bytes vmlinux = build_elf(linux_kernel());
  const auto kernel = read_elf_kernel(ByteSource(vmlinux), false);
  const ContentHash content = hash_content(vmlinux);
  REQUIRE((*cache)->store(*kernel, ByteSource(vmlinux), content));
  const FileIdentity identity{
      .device = 1, .inode = 2, .size_bytes = 3, .mtime_ns = 4, .ctime_ns = 5};
  CHECK_FALSE((*cache)->find(identity));
  (*cache)->remember(identity, ContentHash{.low = 1, .high = 2});
  CHECK_FALSE((*cache)->find(identity));
  (*cache)->remember(identity, content);
  const auto found = (*cache)->find(identity);
  REQUIRE(found);
  CHECK(found->kernel.entry == kLinkAddress);
  FileIdentity other = identity;
  other.ctime_ns = 6;
  CHECK_FALSE((*cache)->find(other));

  const std::string link = names(directory.path("cache"), "i-").at(0);
  for (const char* target :
       {"/etc/passwd", "k-nonsense", "../vmlinux", "k-00000000000000000000000000zzzzzz"}) {
    fs::remove(link);
    fs::create_symlink(target, link);
    CHECK_FALSE((*cache)->find(identity));
  }
}

TEST_CASE("cache: a damaged entry is noticed and made anew") {
  const TemporaryDirectory directory;
  const BootConfig config =
      config_of(directory.file("vmlinux", build_elf(linux_kernel())), directory.path("cache"));
  booted(config);
  const std::string entry = names(config.cache_directory, "k-").at(0);
  const auto write_at = [&](std::streamoff at, bool keep_times) {
    struct stat before = {};
    REQUIRE(::stat(entry.c_str(), &before) == 0);
    REQUIRE(::chmod(entry.c_str(), 0600) == 0);
    std::fstream(entry, std::ios::in | std::ios::out | std::ios::binary).seekp(at).put('\x5a');
    if (keep_times) {
      const std::array<timespec, 2> times = {before.st_atim, before.st_mtim};
      REQUIRE(::utimensat(AT_FDCWD, entry.c_str(), times.data(), 0) == 0);
    }
  };
  const auto cut = [&](off_t size) {
    // An ordinary user may not write to it otherwise; its mode is not what shall give it away.
    REQUIRE(::chmod(entry.c_str(), 0600) == 0);
    REQUIRE(::truncate(entry.c_str(), size) == 0);
    REQUIRE(::chmod(entry.c_str(), 0400) == 0);
  };
  const std::vector<std::function<void()>> damages = {
      [&] { cut(5000); },
      [&] { cut(100); },
      [&] { cut(0); },
      [&] { write_at(0, true); },        // the magic
      [&] { write_at(40, true); },       // a field of the header
      [&] { write_at(0x1000, false); },  // the kernel itself: its time gives it away
      [&] { REQUIRE(::chmod(entry.c_str(), 0666) == 0); },
      [&] {
        fs::remove(entry);
        REQUIRE(::mkfifo(entry.c_str(), 0400) == 0);
      },
  };
  for (std::size_t i = 0; i < damages.size(); ++i) {
    CAPTURE(i);
    damages[i]();
    CHECK_FALSE(booted(config).from_cache);
    CHECK(booted(config).from_cache);
  }
}

TEST_CASE("cache: an entry is not taken for another content or time") {
  const TemporaryDirectory directory;
  const Bytes vmlinux = build_elf(linux_kernel());
  const auto kernel = read_elf_kernel(ByteSource(vmlinux), false);
  const UniqueFd file(::open(directory.path("entry").c_str(), O_RDWR | O_CREAT, 0600));
  const ContentHash content{.low = 1, .high = 2};
  REQUIRE(write_cache_entry(file.get(), *kernel, ByteSource(vmlinux), content, 77));
  const ByteSource source(file.get(), fs::file_size(directory.path("entry")));
  CHECK(read_cache_entry(source, content, 77));
  CHECK_FALSE(read_cache_entry(source, ContentHash{.low = 1, .high = 3}, 77));
  CHECK_FALSE(read_cache_entry(source, content, 78));
  // Every byte of the block is under its checksum.
  for (off_t at = 0; at < 3000; at += 7) {
    CAPTURE(at);
    char byte = 0;
    REQUIRE(::pread(file.get(), &byte, 1, at) == 1);
    const char flipped = static_cast<char>(byte ^ 1);
    REQUIRE(::pwrite(file.get(), &flipped, 1, at) == 1);
    CHECK_FALSE(read_cache_entry(source, content, 77));
    REQUIRE(::pwrite(file.get(), &byte, 1, at) == 1);
  }
  CHECK(read_cache_entry(source, content, 77));
}

TEST_CASE("cache: a kernel of many pieces is kept whole") {
  const TemporaryDirectory directory;
  ElfKernel kernel = linux_kernel();
  // More runs than an entry has extents: the last one takes in what lies between.
  Bytes& content = kernel.segments[0].content;
  content.assign(300UL * 0x11000, std::byte{0});
  for (std::size_t i = 0; i < 300; ++i) {
    content[i * 0x11000 + 5] = static_cast<std::byte>(i + 1);
  }
  content[5] = std::byte{1};
  kernel.segments[1].address += 0x2000000;
  kernel.relocations.clear();
  const BootConfig config =
      config_of(directory.file("vmlinux", build_elf(kernel)), directory.path("cache"));
  booted(config);
  const std::array ranges = {*GuestRange::create(GuestAddress(0), 128 * kMiB)};
  const auto memory = *GuestMemory::create(ranges, {});
  REQUIRE(boot_once(config, *memory)->from_cache);
  CHECK(std::ranges::equal(*memory->slice(GuestAddress(kLinkAddress), content.size()), content));
}

TEST_CASE("cache: a directory that is not safe is refused where it was named") {
  const TemporaryDirectory directory;
  const std::string kernel = directory.file("vmlinux", build_elf(linux_kernel()));
  const auto refusal = [&](const std::string& cache) {
    const auto boot = GuestBoot::open(config_of(kernel, cache));
    return boot ? "accepted" : boot.error().message();
  };
  fs::create_directory(directory.path("open"));
  REQUIRE(::chmod(directory.path("open").c_str(), 0777) == 0);
  CHECK(refusal(directory.path("open")).find("others may write") != std::string::npos);
  CHECK(refusal(directory.path("open")).starts_with("boot.cache: "));
  fs::create_directory_symlink(directory.path(), directory.path("link"));
  CHECK(refusal(directory.path("link")) != "accepted");
  CHECK(refusal(kernel) != "accepted");
  CHECK(refusal("/proc/nowhere/cache") != "accepted");
  const UniqueFd fd(::open(directory.path().c_str(), O_RDONLY | O_DIRECTORY));
  CHECK(refusal("fd:" + std::to_string(fd.get())) == "accepted");
  const UniqueFd file(::open(kernel.c_str(), O_RDONLY));
  CHECK(refusal("fd:" + std::to_string(file.get())).find("not a directory") != std::string::npos);
}

TEST_CASE("cache: the least recently used entries make room") {
  const TemporaryDirectory directory;
  const std::string path = directory.path("cache");
  const auto cache = KernelCache::open(CacheMode::kDirectory, path, 3 * kMiB);
  REQUIRE(cache);
  const auto store = [&](std::uint32_t seed, std::size_t size = kMiB) {
    const Bytes vmlinux = kernel_of(size, seed);
    const auto kernel = read_elf_kernel(ByteSource(vmlinux), false);
    return (*cache)->store(*kernel, ByteSource(vmlinux), ContentHash{.low = seed, .high = 0});
  };
  const auto present = [&](std::uint32_t seed) {
    return fs::exists(fmt::format("{}/k-{:032x}", path, seed));
  };
  const auto find = [&](std::uint32_t seed) {
    return (*cache)->find(ContentHash{.low = seed, .high = 0}).has_value();
  };
  const auto later = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
  REQUIRE(store(1));
  later();
  REQUIRE(store(2));
  (*cache)->remember(FileIdentity{.inode = 2}, ContentHash{.low = 2, .high = 0});
  later();
  REQUIRE(find(1));
  later();
  REQUIRE(store(3));
  CHECK(present(1));
  CHECK_FALSE(present(2));
  CHECK(present(3));
  // The link to what is gone goes with the next writer.
  REQUIRE(store(4));
  CHECK(names(path, "i-").empty());
  CHECK(names(path, "k-").size() == 2);
  CHECK_FALSE(store(5, 2 * kMiB + 0x100000));
  CHECK(names(path, "t-").empty());
}

TEST_CASE("cache: what a killed process left is removed, what a living one writes is not") {
  const TemporaryDirectory directory;
  const BootConfig config =
      config_of(directory.file("vmlinux", build_elf(linux_kernel())), directory.path("cache"));
  fs::create_directory(config.cache_directory);
  REQUIRE(::chmod(config.cache_directory.c_str(), 0700) == 0);
  std::ofstream(config.cache_directory + "/t-dead") << "half";
  const UniqueFd living(
      ::open((config.cache_directory + "/t-living").c_str(), O_RDWR | O_CREAT, 0400));
  REQUIRE(::flock(living.get(), LOCK_EX) == 0);
  booted(config);
  const auto left = names(config.cache_directory, "t-");
  REQUIRE(left.size() == 1);
  CHECK(left[0].ends_with("t-living"));
}

/// Exit status of `body` in a child process.
template <typename Body>
int in_child(Body body) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::_exit(body());
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// 0: booted; 1: refused.
int boots(const BootConfig& config) {
  const std::array ranges = {*GuestRange::create(GuestAddress(0), 64 * kMiB)};
  const auto memory = GuestMemory::create(ranges, {});
  return memory && boot_once(config, **memory) ? 0 : 1;
}

TEST_CASE("cache: starts at once do not disturb each other") {
  const TemporaryDirectory directory;
  const BootConfig config = config_of(
      directory.file("bzImage", build_bzimage(compress(kernel_of(kMiB, 3), Compression::kXz))),
      directory.path("cache"));
  for (int round = 0; round < 3; ++round) {
    fs::remove_all(config.cache_directory);
    std::array<pid_t, 6> children = {};
    for (pid_t& child : children) {
      child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        ::_exit(boots(config));
      }
    }
    for (const pid_t child : children) {
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child);
      CHECK(status == 0);
    }
    CHECK(names(config.cache_directory, "k-").size() == 1);
    CHECK(names(config.cache_directory, "t-").empty());
    CHECK(booted(config).from_cache);
  }
}

TEST_CASE("cache: a limit on file sizes neither kills nor stops the boot") {
  const TemporaryDirectory directory;
  const BootConfig config =
      config_of(directory.file("vmlinux", kernel_of(kMiB, 1)), directory.path("cache"));
  CHECK(in_child([&] {
          const rlimit limit = {.rlim_cur = 4096, .rlim_max = 4096};
          return ::setrlimit(RLIMIT_FSIZE, &limit) == 0 ? boots(config) : 2;
        }) == 0);
  CHECK(names(config.cache_directory, "k-").empty());
  CHECK(names(config.cache_directory, "t-").empty());
}

TEST_CASE("cache: a full disk does not stop the boot and leaves nothing") {
  const TemporaryDirectory directory;
  const BootConfig config =
      config_of(directory.file("vmlinux", kernel_of(kMiB, 1)), directory.path("disk") + "/cache");
  fs::create_directory(directory.path("disk"));
  // A file system of 256 KiB of the child's own; an ordinary user needs a user namespace for it.
  const int status = in_child([&] {
    const uid_t user = ::geteuid();
    const int flags = CLONE_NEWNS | (user == 0 ? 0 : CLONE_NEWUSER);
    const gid_t group = ::getegid();
    const auto keeps_ids = [user, group] {
      const auto put = [](const char* file, const std::string& text) {
        return static_cast<bool>(std::ofstream(file) << text << std::flush);
      };
      return user == 0 || (put("/proc/self/setgroups", "deny") &&
                           put("/proc/self/uid_map", fmt::format("{0} {0} 1", user)) &&
                           put("/proc/self/gid_map", fmt::format("{0} {0} 1", group)));
    };
    // EINVAL: the / of a chroot is no mount of its own.
    if (::unshare(flags) < 0 || !keeps_ids() ||
        (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) < 0 && errno != EINVAL) ||
        ::mount("tmpfs", directory.path("disk").c_str(), "tmpfs", 0, "size=256k,mode=700") < 0) {
      return 2;
    }
    const int result = boots(config);
    return result == 0 && fs::is_empty(config.cache_directory) ? 0 : 3;
  });
  CHECK(status == 0);
}

TEST_CASE("cache: auto uses the user's cache directory, and goes without where it cannot") {
  const TemporaryDirectory directory;
  const std::string kernel = directory.file("vmlinux", build_elf(linux_kernel()));
  REQUIRE(::chmod(directory.path().c_str(), 0755) == 0);
  fs::create_directory(directory.path("home"));
  fs::create_directory(directory.path("xdg"));
  for (const char* name : {"home", "xdg"}) {
    REQUIRE(::chown(directory.path(name).c_str(), 12345, 12345) <= 0);
  }
  const auto as_user = [&](const char* variable, const std::string& value) {
    return in_child([&] {
      if (::geteuid() == 0 && (::setgid(12345) < 0 || ::setuid(12345) < 0)) {
        return 2;
      }
      ::unsetenv("HOME");
      ::unsetenv("XDG_CACHE_HOME");
      ::setenv(variable, value.c_str(), 1);
      return boots({.kernel_path = kernel, .kaslr = false});
    });
  };
  CHECK(as_user("HOME", directory.path("home")) == 0);
  CHECK(names(directory.path("home") + "/.cache/vireo", "k-").size() == 1);
  CHECK(as_user("XDG_CACHE_HOME", directory.path("xdg")) == 0);
  CHECK(names(directory.path("xdg") + "/vireo", "k-").size() == 1);
  CHECK(as_user("XDG_CACHE_HOME", "relative") == 0);
  CHECK(as_user("HOME", "/proc/self") == 0);
}

}  // namespace
}  // namespace vireo
