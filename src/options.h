// SPDX-License-Identifier: Apache-2.0
// The command line: which command, and the configuration that its file and options make.
#pragma once

#include <span>
#include <string>

#include "src/base/error.h"
#include "src/config.h"
#include "src/ctl.h"
#include "src/disk_command.h"
#include "src/restore.h"
#include "src/snapshot_command.h"

namespace vireo {

enum class Command : std::uint8_t {
  kRun,
  kRestore,
  kCheck,
  kCtl,
  kDoctor,
  kDisk,
  kSnapshot,
  kPrint,  ///< --help, --version: print `text`, and that is all
};

struct Invocation {
  Command command = Command::kRun;
  Config config;
  CtlCommand ctl;
  DiskCommand disk;
  RestoreCommand restore;
  SnapshotCommand snapshot;
  std::string text;
  bool json = false;  ///< doctor: its report for programs
};

/// Reads the arguments (the program's name first), and the configuration file that they name.
/// Errors: kUsage, and those of the file.
Result<Invocation> parse_command_line(std::span<const char* const> arguments);

}  // namespace vireo
