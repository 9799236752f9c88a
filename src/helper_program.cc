// SPDX-License-Identifier: Apache-2.0
#include "src/helper_program.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <iterator>

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/fd.h"
#include "src/config_value.h"

namespace vireo {

namespace {

/// posix_spawn's two objects, with the program's descriptors and signals set up in them.
class SpawnSetup {
 public:
  SpawnSetup() {
    ::posix_spawn_file_actions_init(&actions_);
    ::posix_spawnattr_init(&attributes_);
    // Ours are blocked and ignored as a machine wants them.
    sigset_t none;
    sigset_t all;
    ::sigemptyset(&none);
    ::sigfillset(&all);
    ::posix_spawnattr_setsigmask(&attributes_, &none);
    ::posix_spawnattr_setsigdefault(&attributes_, &all);
    ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;
  ~SpawnSetup() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }

  /// The program has `from` as `to`.
  void give(int from, int to) {
    CHECK(::posix_spawn_file_actions_adddup2(&actions_, from, to) == 0);
  }

  const posix_spawn_file_actions_t* actions() const { return &actions_; }
  const posix_spawnattr_t* attributes() const { return &attributes_; }

 private:
  posix_spawn_file_actions_t actions_ = {};
  posix_spawnattr_t attributes_ = {};
};

/// Gives the program its descriptors. They are copied first to above the numbers that it has for
/// them, since there they could overwrite one another; `copies` are to live until it runs.
Result<> give_files(SpawnSetup& setup, const HelperProgram& program, int messages,
                    std::vector<UniqueFd>& copies) {
  TRY_ASSIGN(const UniqueFd nothing, open_file("/dev/null", O_RDONLY));
  std::vector<int> all = {nothing.get(), program.output < 0 ? messages : program.output, messages};
  if (program.file >= 0) {
    all.push_back(program.file);  // HelperProgram::kFile
  }
  const int count = static_cast<int>(all.size());
  for (int number = 0; number < count; ++number) {
    const int fd = all[static_cast<std::size_t>(number)];
    copies.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, count));
    if (!copies.back()) {
      return fail_errno(errno, "duplicating a descriptor");
    }
    setup.give(copies.back().get(), number);
  }
  return {};
}

/// As execve() wants them.
std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  std::ranges::transform(texts, std::back_inserter(all), [](auto& text) { return text.data(); });
  return all;
}

Result<pid_t> spawn(const HelperProgram& program, int messages) {
  std::vector<UniqueFd> copies;
  SpawnSetup setup;
  TRY(give_files(setup, program, messages, copies));
  std::vector<std::string> arguments = program.arguments;
  arguments.insert(arguments.begin(), program.path);
  std::vector<char*> argv = pointers(arguments);
  argv.push_back(nullptr);
  std::vector<std::string> environment = program.environment;
  std::vector<char*> envp = pointers(environment);
  for (char** own = environ; *own != nullptr; ++own) {
    envp.push_back(*own);
  }
  envp.push_back(nullptr);
  pid_t child = 0;
  const int failed = ::posix_spawn(&child, program.path.c_str(), setup.actions(),
                                   setup.attributes(), argv.data(), envp.data());
  if (failed != 0) {
    return fail_errno(failed, program.path);
  }
  return child;
}

/// The last line in the file that is not empty.
std::string last_line(int fd) {
  constexpr off_t kMost = 4096;
  const off_t size = ::lseek(fd, 0, SEEK_END);
  std::string text(static_cast<std::size_t>(std::clamp(size, off_t{0}, kMost)), '\0');
  const auto start = static_cast<std::uint64_t>(size) - text.size();
  if (text.empty() || !read_full_at(fd, std::as_writable_bytes(std::span(text)), start)) {
    return {};
  }
  const std::size_t end = text.find_last_not_of("\r\n \t");
  text.resize(end == std::string::npos ? 0 : end + 1);
  return printable(text.substr(text.find_last_of("\r\n") + 1));
}

}  // namespace

std::vector<std::string> program_directories() {
  std::vector<std::string> directories;
  const char* const path = std::getenv("PATH");
  std::string_view rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    const std::size_t colon = std::min(rest.find(':'), rest.size());
    // What is relative would depend on where vireo was started.
    if (rest.starts_with('/')) {
      directories.emplace_back(rest.substr(0, colon));
    }
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  for (const char* const more : {"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"}) {
    if (std::ranges::find(directories, more) == directories.end()) {
      directories.emplace_back(more);
    }
  }
  return directories;
}

std::string find_program(std::span<const std::string> directories,
                         std::span<const std::string_view> names) {
  for (const std::string_view name : names) {
    for (const std::string& directory : directories) {
      std::string path = fmt::format("{}/{}", directory, name);
      if (::access(path.c_str(), X_OK) == 0) {
        return path;
      }
    }
  }
  return {};
}

Result<> run_program(const HelperProgram& program) {
  const UniqueFd messages(::memfd_create("messages", MFD_CLOEXEC));
  if (!messages) {
    return fail_errno(errno, "memfd_create");
  }
  // Whoever started vireo may have had it ignore the end of its children; then nobody would hear
  // how the program ended.
  const auto before = std::signal(SIGCHLD, SIG_DFL);
  auto child = spawn(program, messages.get());
  int status = 0;
  pid_t ended = -1;
  while (child && (ended = ::waitpid(*child, &status, 0)) < 0 && errno == EINTR) {
  }
  std::signal(SIGCHLD, before);
  TRY(child);
  const std::string name = program.path.substr(program.path.rfind('/') + 1);
  if (ended < 0) {
    return fail(ErrorCode::kSystem, name + ": nobody knows how it ended");
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    return {};
  }
  const std::string said = last_line(messages.get());
  const std::string how = WIFSIGNALED(status) ? fmt::format("ended by signal {}", WTERMSIG(status))
                                              : fmt::format("failed ({})", WEXITSTATUS(status));
  return fail(ErrorCode::kSystem,
              fmt::format("{} {}{}{}", name, how, said.empty() ? "" : ": ", said));
}

}  // namespace vireo
