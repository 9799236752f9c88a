// SPDX-License-Identifier: Apache-2.0
#include "src/cloud_seed.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

namespace vireo {

namespace {

/// The first makes the same bytes of the same texts; the others put the time into them.
constexpr std::array<std::string_view, 3> kPrograms = {"xorrisofs", "genisoimage", "mkisofs"};
/// Of a host's name (RFC 1123 §2.1).
constexpr std::size_t kHostNameMax = 63;

/// FNV-1a, 64 bits: tells texts apart, and protects nothing.
class Hash {
 public:
  void add(std::string_view text) {
    for (const char c : text) {
      add_byte(static_cast<std::uint8_t>(c));
    }
    add_byte(0);  // which no text has: where one ends belongs to it
  }
  std::uint64_t value() const { return value_; }

 private:
  void add_byte(std::uint8_t byte) { value_ = (value_ ^ byte) * 0x100000001b3; }

  std::uint64_t value_ = 0xcbf29ce484222325;
};

std::string default_meta_data(const CloudInitConfig& cloud_init, const std::string& name) {
  Hash hash;
  hash.add(cloud_init.user_data);
  hash.add(cloud_init.network_config);
  hash.add(name);
  // cloud-init does its work once for each instance-id.
  std::string text = fmt::format("instance-id: iid-vireo-{:016x}\n", hash.value());
  if (!name.empty()) {
    std::string host = name.substr(0, kHostNameMax);
    std::ranges::replace(host, '_', '-');
    text += fmt::format("local-hostname: \"{}\"\n", host);
  }
  return text;
}

/// A directory with the texts, as the programs want them; gone with this object.
class TextDirectory {
 public:
  TextDirectory() = default;
  TextDirectory(const TextDirectory&) = delete;
  TextDirectory& operator=(const TextDirectory&) = delete;
  ~TextDirectory() {
    for (const std::string& file : files_) {
      ::unlink(file.c_str());
    }
    if (!path_.empty()) {
      ::rmdir(path_.c_str());
    }
  }

  /// In memory where it can be: there may be secrets in the texts.
  Result<> create() {
    const char* const temporary = std::getenv("TMPDIR");
    for (const char* const parent : {"/dev/shm", temporary == nullptr ? "/tmp" : temporary}) {
      std::string path = fmt::format("{}/vireo-seed.XXXXXX", parent);
      if (::mkdtemp(path.data()) != nullptr) {
        path_ = path;
        return {};
      }
    }
    return fail_errno(errno, "making a temporary directory");
  }
  Result<> add(const char* name, const std::string& text) {
    const std::string path = fmt::format("{}/{}", path_, name);
    TRY_ASSIGN(const UniqueFd file, open_file(path, O_WRONLY | O_CREAT | O_EXCL, 0600));
    files_.push_back(path);
    TRY(write_full(file.get(), std::as_bytes(std::span(text))));
    // The ISO has the times of both.
    constexpr std::array<std::timespec, 2> kEpoch = {};
    return ::futimens(file.get(), kEpoch.data()) == 0 &&
                   ::utimensat(AT_FDCWD, path_.c_str(), kEpoch.data(), 0) == 0
               ? Result<>()
               : fail_errno(errno, path);
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::vector<std::string> files_;
};

Result<UniqueFd> run(HelperProgram& program) {
  UniqueFd seed(::memfd_create("cidata", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!seed) {
    return fail_errno(errno, "memfd_create");
  }
  program.output = seed.get();
  TRY(run_program(program));
  struct stat status = {};
  if (::fstat(seed.get(), &status) != 0 || status.st_size == 0) {
    return fail(ErrorCode::kSystem, program.path + ": made an empty ISO");
  }
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
  if (::fcntl(seed.get(), F_ADD_SEALS, kSeals) != 0) {
    return fail_errno(errno, "sealing the seed");
  }
  return seed;
}

Result<UniqueFd> make(const CloudInitConfig& cloud_init, const std::string& name,
                      std::span<const std::string> directories) {
  HelperProgram program;
  program.path = find_program(directories, kPrograms);
  if (program.path.empty()) {
    return fail(ErrorCode::kSystem,
                "nothing is there that makes the seed; install the package xorriso or "
                "genisoimage, or make an ISO yourself and name it as cloud_init.seed");
  }
  TextDirectory texts;
  TRY(texts.create());
  TRY(texts.add("user-data", cloud_init.user_data));
  TRY(texts.add("meta-data", cloud_init.meta_data.empty() ? default_meta_data(cloud_init, name)
                                                          : cloud_init.meta_data));
  if (!cloud_init.network_config.empty()) {
    TRY(texts.add("network-config", cloud_init.network_config));
  }
  program.environment = {"SOURCE_DATE_EPOCH=0"};
  program.arguments = {"-quiet", "-V", "cidata", "-J", "-r", texts.path()};
  return run(program);
}

}  // namespace

Result<UniqueFd> make_cloud_seed(const CloudInitConfig& cloud_init, const std::string& name,
                                 std::span<const std::string> directories) {
  Result<UniqueFd> made = make(cloud_init, name, directories);
  if (!made) {
    return std::unexpected(std::move(made).error().context("cloud_init"));
  }
  return made;
}

}  // namespace vireo
