// SPDX-License-Identifier: Apache-2.0
// From arguments to a machine, and from an Error to one line and an exit status: the only place
// that prints one and exits.
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include "src/base/colour.h"
#include "src/base/log.h"
#include "src/config_value.h"
#include "src/control.h"
#include "src/ctl.h"
#include "src/doctor.h"
#include "src/machine.h"
#include "src/options.h"
#include "src/restore.h"
#include "src/timeline.h"

namespace vireo {
namespace {

int status_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage:
      return 64;
    case ErrorCode::kBadInput:
      return 65;
    case ErrorCode::kMissingInput:
      return 66;
    case ErrorCode::kNoKvm:
      return 69;
    case ErrorCode::kInternal:
      return 70;
    case ErrorCode::kSystem:
      return 71;
    case ErrorCode::kPermission:
      return 77;
    case ErrorCode::kConfig:
      return 78;
  }
  std::unreachable();
}

/// A program that was started without descriptors 0 to 2 would give their numbers to files of its
/// own, and then write its messages into them.
void open_standard_descriptors() {
  int fd = -1;
  do {
    fd = ::open("/dev/null", O_RDWR);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd > STDERR_FILENO) {
    ::close(fd);
  }
}

/// Threads of ours need little: no heap of their own, and no stack as large as usual, which is
/// given a huge page at its first touch where those are always on.
void limit_threads() {
  ::mallopt(M_ARENA_MAX, 1);
  constexpr std::size_t kThreadStack = std::size_t{256} << 10;
  pthread_attr_t attributes;
  if (::pthread_attr_init(&attributes) == 0) {
    // Refused, it costs memory and nothing else.
    ::pthread_attr_setstacksize(&attributes, kThreadStack);
    ::pthread_setattr_default_np(&attributes);
    ::pthread_attr_destroy(&attributes);
  }
}

using Build = std::function<Result<std::unique_ptr<Machine>>()>;

Result<int> run_machine(const Config& config, const Build& build) {
  TRY(block_signals(Machine::kSignals));
  TRY(open_log(config.log));
  UnixListener listener;
  if (!config.control_path.empty()) {
    TRY_ASSIGN(listener, Control::listen(config.control_path));
  }
  std::vector<UniqueFd> clients;  // outlive the machine: a client sees their end when that is gone
  TRY_ASSIGN(const std::unique_ptr<Machine> machine, build());
  std::optional<Control> control;
  std::vector<int> directories;
  if (listener) {
    if (listener.directory() >= 0) {
      directories.push_back(listener.directory());
    }
    control.emplace(*machine, std::move(listener));
    machine->at_start([&control] { control->start(); });
    machine->at_end([&] { clients = control->finish(); });
  }
  TRY(machine->seal(directories));
  return machine->run();
}

Result<int> run_restored(const RestoreCommand& command, Timeline& timeline) {
  TRY_ASSIGN(RestoreSource source, open_snapshot(command));
  TRY_ASSIGN(const Config config, restored_config(source, command));
  timeline.record(Step::kConfigParsed);
  if (command.standby) {
    return run_machine(config, [&] {
      return Machine::stand_by({.first = std::move(source), .command = command, .config = config},
                               timeline);
    });
  }
  return run_machine(config, [&] { return Machine::restore(config, std::move(source), timeline); });
}

/// A stream that could not write drops what it held, so that flushing it tells nothing any more.
Result<> print(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return fail_errno(errno, "stdout");
  }
  return {};
}

Result<int> report_host(bool json) {
  const Diagnosis diagnosis = examine_host();
  TRY(print(json ? to_json(diagnosis) : to_text(diagnosis)));
  const Finding* const blocker = diagnosis.blocker();
  return blocker != nullptr ? status_of(*blocker->blocker) : 0;
}

Result<int> execute(std::span<const char* const> arguments) {
  Timeline timeline;
  TRY_ASSIGN(const Invocation invocation, parse_command_line(arguments));
  switch (invocation.command) {
    case Command::kRestore:
      return run_restored(invocation.restore, timeline);
    case Command::kRun:
      timeline.record(Step::kConfigParsed);
      return run_machine(invocation.config,
                         [&] { return Machine::build(invocation.config, timeline); });
    case Command::kCtl:
      return run_ctl(invocation.ctl);
    case Command::kDisk:
      TRY(run_disk_command(invocation.disk));
      break;
    case Command::kSnapshot:
      TRY(run_snapshot_command(invocation.snapshot));
      break;
    case Command::kDoctor:
      return report_host(invocation.json);
    case Command::kCheck:
      TRY(print(to_toml(invocation.config)));
      break;
    case Command::kPrint:
      TRY(print(invocation.text));
      break;
  }
  return 0;
}

int run_main(std::span<const char* const> arguments) {
  open_standard_descriptors();
  limit_threads();
  // A console or log reader that goes away is an error of that write, not the end of the VM.
  std::signal(SIGPIPE, SIG_IGN);
  // A file that may not grow any more (limits.rlimits) is an error of its write.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    const Result<int> status = execute(arguments);
    if (status) {
      return *status;
    }
    std::fprintf(stderr, "%s %s\n", message_prefix().c_str(),
                 printable(status.error().message()).c_str());
    return status_of(status.error().code());
  } catch (const std::bad_alloc&) {
    std::fputs("vireo: out of memory\n", stderr);
    return status_of(ErrorCode::kSystem);
  } catch (const std::exception& exception) {
    std::fprintf(stderr, "vireo: unexpected: %s\n", exception.what());
    return status_of(ErrorCode::kInternal);
  }
}

}  // namespace
}  // namespace vireo

int main(int argc, char** argv) {
  return vireo::run_main(std::span<const char* const>(argv, static_cast<std::size_t>(argc)));
}
