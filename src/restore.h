// SPDX-License-Identifier: Apache-2.0
// From a snapshot's file, and what the command line says, to what Machine::restore() needs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arch/arch.h"
#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/config.h"
#include "src/snapshot/snapshot_file.h"
#include "src/snapshot/working_set.h"
#include "src/snapshot_memory.h"

namespace vireo {

/// How guest memory comes out of the file.
enum class MemoryMode : std::uint8_t {
  kMap,   ///< mapped privately, read when it is touched
  kFill,  ///< read while the guest runs, what it touches first; kCopy where that cannot be
  kCopy,  ///< read before the first instruction
};

struct RestoreCommand {
  /// An option that changes the configuration that the snapshot has.
  struct Change {
    std::string option;  ///< "--disk"
    std::string key;     ///< of the configuration file
    std::string text;
  };
  std::string snapshot;
  std::string memory;       ///< "map", "fill", "copy", or empty: as the machine's memory wants it
  std::string working_set;  ///< "record", "use" or empty
  bool standby = false;     ///< the machine waits to be told which snapshot of its kind it becomes
  std::vector<Change> changes;
  std::vector<std::string> stale_disks;  ///< ids of those that are taken as they are
};

struct RestoreSource {
  std::string path;
  UniqueFd file;
  SnapshotFile snapshot;
  MemoryFile memory_file;
  MemoryMode memory = MemoryMode::kMap;
  std::vector<std::string> accepted_disks;  ///< ids: they need not be as they were
  std::vector<arch::MmioDevice> mmio_places;
  std::string recorded_path;               ///< the pages that are touched go there, at the end
  std::vector<WorkingSetRun> working_set;  ///< they are there before the guest goes on

  /// The file that has its memory, and where that is.
  UniqueFd& memory_fd() { return memory_file.path.empty() ? file : memory_file.file; }
  const std::string& memory_path() const {
    return memory_file.path.empty() ? path : memory_file.path;
  }
};

/// Whether its options have values that there are, and go together. Errors: kUsage.
Result<> check_restore_command(const RestoreCommand& command);

/// Opens the file, and reads all of it but memory. Errors begin with its path: kMissingInput,
/// kPermission, kBadInput.
Result<RestoreSource> open_snapshot(const RestoreCommand& command);
/// The same of a file that is open.
Result<RestoreSource> read_snapshot(std::string path, UniqueFd file);

/// The machine that it has, with the changes. Errors: kBadInput, kUsage, kConfig.
Result<Config> restored_config(RestoreSource& source, const RestoreCommand& command);

/// What stands by for a snapshot of its kind: `config`, which restored_config() made of `first`.
struct PreparedMachine {
  RestoreSource first;
  RestoreCommand command;
  Config config;
};

/// The configuration of `source`, which is that of the machine that stands by but for its UUID; the
/// VM keeps its name. Opens nothing. Errors: kBadInput, kUsage, kConfig, with what is another one.
Result<Config> config_in_standby(RestoreSource& source, const PreparedMachine& prepared);

}  // namespace vireo
