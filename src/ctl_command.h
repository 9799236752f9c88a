// SPDX-License-Identifier: Apache-2.0
// What the command line of `vireo ctl` says.
#pragma once

#include <string>

namespace vireo {

struct CtlCommand {
  std::string socket;
  std::string verb;
  std::string timeout;     ///< of stop; empty: the VM's own
  std::string argument;    ///< of drive: which; of snapshot: the file; of load
  std::string settings;    ///< of drive: "size=20G,…"
  std::string then;        ///< of snapshot: resume, pause or stop
  std::string disks;       ///< of snapshot: what becomes of them
  std::string disk_files;  ///< of snapshot: "root=PATH,…", where their overlays or copies are
  std::string rounds;      ///< of snapshot: so many, while the guest runs
  std::string left;        ///< of snapshot: so much may be left for its pause
  std::string over;        ///< of snapshot: what is done where it is more
  bool diff = false;       ///< of snapshot: only what has changed
  bool seal = false;       ///< of snapshot: nobody may change it
  std::string parent;      ///< of snapshot: since that file
  bool json = false;       ///< the answer as it came
};

}  // namespace vireo
