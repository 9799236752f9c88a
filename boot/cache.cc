// SPDX-License-Identifier: Apache-2.0
#include "boot/cache.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>
#include <utility>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <fmt/core.h>

#include "src/base/fd_path.h"
#include "src/base/log.h"

namespace vireo {

namespace {

constexpr const char* kLog = "boot";
constexpr std::string_view kEntryPrefix = "k-";
constexpr std::string_view kIndexPrefix = "i-";
constexpr std::string_view kTemporaryPrefix = "t-";
constexpr std::size_t kHashDigits = 32;
constexpr mode_t kDirectoryMode = 0700;
constexpr mode_t kEntryMode = 0400;
constexpr mode_t kWritableByOthers = S_IWGRP | S_IWOTH;
/// Longer than the grain of any file system's clock.
constexpr std::uint64_t kSettledNs = 2'000'000'000;
/// Links are a few bytes each; beyond this many they are mostly of files long gone.
constexpr std::ptrdiff_t kIndexMax = 1024;

std::string entry_name(const ContentHash& content) {
  return fmt::format("{}{:016x}{:016x}", kEntryPrefix, content.high, content.low);
}

std::optional<ContentHash> parse_entry_name(std::string_view name) {
  if (!name.starts_with(kEntryPrefix) || name.size() != kEntryPrefix.size() + kHashDigits) {
    return std::nullopt;
  }
  name.remove_prefix(kEntryPrefix.size());
  const auto parse = [](std::string_view digits, std::uint64_t& value) {
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    return error == std::errc() && end == digits.data() + digits.size();
  };
  ContentHash content;
  if (!parse(name.substr(0, kHashDigits / 2), content.high) ||
      !parse(name.substr(kHashDigits / 2), content.low)) {
    return std::nullopt;
  }
  return content;
}

std::string index_name(const FileIdentity& identity) {
  static_assert(std::has_unique_object_representations_v<FileIdentity>);
  const XXH128_hash_t hash = XXH3_128bits(&identity, sizeof(identity));
  return fmt::format("{}{:016x}{:016x}", kIndexPrefix, hash.high64, hash.low64);
}

Result<std::string> temporary_name() {
  std::uint64_t random = 0;
  if (::getrandom(&random, sizeof(random), 0) != sizeof(random)) {
    return fail_errno(errno, "getrandom");
  }
  return fmt::format("{}{:016x}", kTemporaryPrefix, random);
}

bool belongs_to_us(const struct stat& status) {
  return status.st_uid == ::geteuid() && (status.st_mode & kWritableByOthers) == 0;
}

/// Where `auto` keeps the cache; empty where there is no home.
std::string automatic_directory() {
  if (::geteuid() == 0) {
    return "/var/cache/vireo";
  }
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && cache[0] == '/') {
    return std::string(cache) + "/vireo";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0] == '/') {
    return std::string(home) + "/.cache/vireo";
  }
  return {};
}

Result<UniqueFd> open_or_make_directory(const std::string& path) {
  constexpr int kFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW;
  auto fd = open_file(path, kFlags);
  if (fd || fd.error().errnum() != ENOENT) {
    return fd;
  }
  if (const std::size_t slash = path.rfind('/'); slash != std::string::npos && slash > 0) {
    ::mkdir(path.substr(0, slash).c_str(), kDirectoryMode);
  }
  if (::mkdir(path.c_str(), kDirectoryMode) < 0 && errno != EEXIST) {
    return fail_errno(errno, path);
  }
  return open_file(path, kFlags);
}

Result<UniqueFd> open_cache_directory(const std::string& path) {
  TRY_ASSIGN(UniqueFd fd,
             is_inherited(path) ? open_inherited(path, O_RDONLY) : open_or_make_directory(path));
  struct stat status = {};
  if (::fstat(fd.get(), &status) < 0) {
    return fail_errno(errno, path);
  }
  if (!S_ISDIR(status.st_mode)) {
    return fail(ErrorCode::kConfig, path + ": not a directory");
  }
  if (!belongs_to_us(status)) {
    return fail(ErrorCode::kConfig,
                path + ": belongs to another user, or others may write to it (mode 0700 is right)");
  }
  return fd;
}

/// Names of the directory that begin with a letter of ours.
std::vector<std::string> list(int directory) {
  std::vector<std::string> names;
  // A description of its own, or two listings would share one position.
  const int copy = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* const stream = copy < 0 ? nullptr : ::fdopendir(copy);
  if (stream == nullptr) {
    if (copy >= 0) {
      ::close(copy);
    }
    return names;
  }
  while (const dirent* const entry = ::readdir(stream)) {
    const std::string_view name = entry->d_name;
    if (name.starts_with(kEntryPrefix) || name.starts_with(kIndexPrefix) ||
        name.starts_with(kTemporaryPrefix)) {
      names.emplace_back(name);
    }
  }
  ::closedir(stream);
  return names;
}

std::optional<std::string> read_link(int directory, const std::string& name) {
  std::array<char, 64> target = {};
  const ssize_t size = ::readlinkat(directory, name.c_str(), target.data(), target.size());
  if (size < 0 || static_cast<std::size_t>(size) == target.size()) {
    return std::nullopt;
  }
  return std::string(target.data(), static_cast<std::size_t>(size));
}

/// Removes links to entries that are gone; all of them where they are too many.
void tidy_index(int directory, const std::vector<std::string>& names) {
  const auto is_index = [](const std::string& name) { return name.starts_with(kIndexPrefix); };
  const bool too_many = std::ranges::count_if(names, is_index) > kIndexMax;
  for (const std::string& name : names) {
    struct stat status = {};
    if (is_index(name) && (too_many || ::fstatat(directory, name.c_str(), &status, 0) < 0)) {
      ::unlinkat(directory, name.c_str(), 0);
    }
  }
}

/// Removes what a killed process left half-written: nobody holds its lock any more.
void remove_abandoned(int directory, const std::string& name) {
  const UniqueFd fd(
      ::openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) {
    ::unlinkat(directory, name.c_str(), 0);
  }
}

}  // namespace

Result<std::unique_ptr<KernelCache>> KernelCache::open(CacheMode mode, const std::string& directory,
                                                       std::uint64_t size_max) {
  if (mode == CacheMode::kOff) {
    return nullptr;
  }
  const std::string path = mode == CacheMode::kAuto ? automatic_directory() : directory;
  if (path.empty()) {
    log_debug(kLog, "no home directory, so no kernel cache");
    return nullptr;
  }
  auto fd = open_cache_directory(path);
  if (!fd) {
    if (mode == CacheMode::kDirectory) {
      return std::unexpected(std::move(fd).error().context("boot.cache"));
    }
    log_info(kLog, "no kernel cache: {}", fd.error().message());
    return nullptr;
  }
  return std::unique_ptr<KernelCache>(new KernelCache(std::move(*fd), size_max));
}

std::optional<CachedKernel> KernelCache::open_entry(const std::string& name,
                                                    const ContentHash& content) {
  UniqueFd fd(
      ::openat(directory_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd) {
    return std::nullopt;
  }
  struct stat status = {};
  if (::fstat(fd.get(), &status) == 0 && S_ISREG(status.st_mode) && belongs_to_us(status) &&
      status.st_mtim.tv_nsec == 0) {
    const auto size = static_cast<std::uint64_t>(status.st_size);
    auto kernel = read_cache_entry(ByteSource(fd.get(), size), content, status.st_mtim.tv_sec);
    if (kernel) {
      // For the order of eviction; the modification time must stay as it is.
      const std::array<timespec, 2> times = {timespec{.tv_sec = 0, .tv_nsec = UTIME_NOW},
                                             timespec{.tv_sec = 0, .tv_nsec = UTIME_OMIT}};
      ::futimens(fd.get(), times.data());
      return CachedKernel{.fd = std::move(fd), .size = size, .kernel = std::move(*kernel)};
    }
  }
  log_warn(kLog, "kernel cache: entry {} is damaged or was changed; it is made anew", name);
  ::unlinkat(directory_.get(), name.c_str(), 0);
  return std::nullopt;
}

std::optional<CachedKernel> KernelCache::find(const FileIdentity& identity) {
  const auto name = read_link(directory_.get(), index_name(identity));
  const auto content = name ? parse_entry_name(*name) : std::nullopt;
  return content ? open_entry(*name, *content) : std::nullopt;
}

std::optional<CachedKernel> KernelCache::find(const ContentHash& content) {
  return open_entry(entry_name(content), content);
}

Result<> KernelCache::make_room(std::uint64_t size) {
  struct Entry {
    std::string name;
    std::uint64_t size;
    timespec used;
  };
  std::vector<Entry> entries;
  std::uint64_t total = size;
  const std::vector<std::string> names = list(directory_.get());
  for (const std::string& name : names) {
    struct stat status = {};
    if (name.starts_with(kTemporaryPrefix)) {
      remove_abandoned(directory_.get(), name);
    } else if (name.starts_with(kEntryPrefix) &&
               ::fstatat(directory_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) {
      entries.push_back({name, static_cast<std::uint64_t>(status.st_size), status.st_atim});
      total += entries.back().size;
    }
  }
  std::ranges::sort(entries, [](const Entry& a, const Entry& b) {
    return std::pair(a.used.tv_sec, a.used.tv_nsec) < std::pair(b.used.tv_sec, b.used.tv_nsec);
  });
  for (const Entry& entry : entries) {
    if (total <= size_max_) {
      break;
    }
    ::unlinkat(directory_.get(), entry.name.c_str(), 0);
    total -= entry.size;
  }
  tidy_index(directory_.get(), names);
  if (total > size_max_) {
    return fail(ErrorCode::kSystem,
                fmt::format("an entry of {} MiB is more than the cache may hold", size >> 20));
  }
  return {};
}

Result<> KernelCache::write_entry(const std::string& temporary, const KernelImage& kernel,
                                  const ByteSource& source, const ContentHash& content) {
  const UniqueFd fd(::openat(directory_.get(), temporary.c_str(),
                             O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kEntryMode));
  if (!fd || ::flock(fd.get(), LOCK_EX) < 0) {
    return fail_errno(errno, temporary);
  }
  timespec now = {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  now.tv_nsec = 0;
  TRY(write_cache_entry(fd.get(), kernel, source, content, now.tv_sec));
  const std::array<timespec, 2> times = {timespec{.tv_sec = 0, .tv_nsec = UTIME_NOW}, now};
  // On disk before it gets its name: the length alone would not tell a power cut's zeros.
  if (::futimens(fd.get(), times.data()) < 0 || ::fsync(fd.get()) < 0 ||
      ::renameat(directory_.get(), temporary.c_str(), directory_.get(),
                 entry_name(content).c_str()) < 0) {
    return fail_errno(errno, temporary);
  }
  return {};
}

std::optional<CachedKernel> KernelCache::store(const KernelImage& kernel, const ByteSource& source,
                                               const ContentHash& content) {
  const auto try_store = [&]() -> Result<> {
    std::uint64_t size = kernel.relocations_size + 4096;
    for (const Extent& extent : kernel.extents) {
      size += extent.size + 4096;
    }
    // Past this limit a write would not fail but kill the process (SIGXFSZ).
    rlimit limit = {};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < size) {
      return fail_errno(EFBIG, "limit on file sizes");
    }
    TRY(make_room(size));
    TRY_ASSIGN(const std::string temporary, temporary_name());
    auto written = write_entry(temporary, kernel, source, content);
    if (!written) {
      ::unlinkat(directory_.get(), temporary.c_str(), 0);
    }
    return written;
  };
  if (const auto stored = try_store(); !stored) {
    log_warn(kLog, "kernel cache: {}; booting uncached", stored.error().message());
    return std::nullopt;
  }
  return find(content);
}

void KernelCache::remember(const FileIdentity& identity, const ContentHash& content) {
  timespec now = {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const std::uint64_t now_ns = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
                               static_cast<std::uint64_t>(now.tv_nsec);
  if (identity.ctime_ns + kSettledNs > now_ns) {
    return;
  }
  const std::string name = index_name(identity);
  const std::string target = entry_name(content);
  if (::symlinkat(target.c_str(), directory_.get(), name.c_str()) < 0 && errno == EEXIST) {
    ::unlinkat(directory_.get(), name.c_str(), 0);
    ::symlinkat(target.c_str(), directory_.get(), name.c_str());
  }
}

}  // namespace vireo
