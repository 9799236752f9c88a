// SPDX-License-Identifier: Apache-2.0
// The verbs of the control socket: `vireo ctl SOCKET VERB`, and the paths under /vireo/. What shows
// something is a GET, what does something a POST.
#pragma once

#include <array>
#include <string_view>

namespace vireo::manual {

struct Verb {
  std::string_view name;
  std::string_view method;
  std::string_view help;
  bool ends_vm = false;
  bool takes_body = false;  ///< a JSON object; else the request has none
  bool in_standby = false;  ///< a VM that stands by does it too
};

inline constexpr auto kVerbs = std::to_array<Verb>({
    {.name = "status",
     .method = "GET",
     .help = "state, readiness, size, uptime",
     .in_standby = true},
    {.name = "config", .method = "GET", .help = "the resolved configuration", .in_standby = true},
    {.name = "stats",
     .method = "GET",
     .help = "exits by reason, port and register with their time; KVM's own counters",
     .in_standby = true},
    {.name = "metrics",
     .method = "GET",
     .help = "the numbers for monitoring (over HTTP also as OpenMetrics text)",
     .in_standby = true},
    {.name = "events",
     .method = "GET",
     .help = "what happens to the VM, as it happens, until it ends",
     .in_standby = true},
    {"pause", "POST", "stops every vCPU between two instructions"},
    {"resume", "POST", "lets a paused VM go on"},
    {.name = "stop",
     .method = "POST",
     .help = "presses the power button, waits for the end; --timeout 10s",
     .ends_vm = true,
     .takes_body = true,
     .in_standby = true},
    {.name = "kill",
     .method = "POST",
     .help = "ends the VM without asking the guest",
     .ends_vm = true,
     .in_standby = true},
    {"ctrl-alt-del", "POST", "presses the three keys: most guests reboot"},
    {"nmi", "POST", "a non-maskable interrupt for every vCPU"},
    {.name = "drive",
     .method = "POST",
     .help = "ID [SETTINGS]: another size, file or limits for a disk",
     .takes_body = true},
    {.name = "snapshot",
     .method = "POST",
     .help = "PATH: the whole machine into a file; --then resume|stop, --disks freeze|reflink|none",
     .takes_body = true},
    {.name = "load",
     .method = "POST",
     .help = "[PATH]: a VM that stands by goes on as that snapshot, or as its own",
     .takes_body = true,
     .in_standby = true},
});

}  // namespace vireo::manual
