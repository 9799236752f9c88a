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
};

inline constexpr auto kVerbs = std::to_array<Verb>({
    {"status", "GET", "state, readiness, size, uptime"},
    {"config", "GET", "the resolved configuration"},
    {"stats", "GET", "exits by reason, port and register with their time; KVM's own counters"},
    {"metrics", "GET", "the numbers for monitoring (over HTTP also as OpenMetrics text)"},
    {"events", "GET", "what happens to the VM, as it happens, until it ends"},
    {"pause", "POST", "stops every vCPU between two instructions"},
    {"resume", "POST", "lets a paused VM go on"},
    {.name = "stop",
     .method = "POST",
     .help = "presses the power button, waits for the end; --timeout 10s",
     .ends_vm = true,
     .takes_body = true},
    {.name = "kill",
     .method = "POST",
     .help = "ends the VM without asking the guest",
     .ends_vm = true},
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
});

}  // namespace vireo::manual
