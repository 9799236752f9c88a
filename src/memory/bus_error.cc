// SPDX-License-Identifier: Apache-2.0
#include "src/memory/bus_error.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <string_view>
#include <utility>

#include <sys/prctl.h>
#include <unistd.h>

namespace vireo {

namespace {

constexpr int kExitSystem = 71;
constexpr std::size_t kMaxRegions = 8;
constexpr std::size_t kPage = 4096;

// A signal handler has no argument of ours, hence these; written before any thread starts.
struct WatchedRegion {
  const std::byte* start = nullptr;
  const std::byte* end = nullptr;
};
struct Watch {
  WatchedRegion regions[kMaxRegions];
  std::string what;
  void (*at_exit)() = nullptr;
};
// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables)
Watch g_watch;
std::atomic<std::size_t> g_region_count{0};
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

void say(std::string_view text) {
  // Nothing can be done about a stderr that does not take it.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

void on_bus_error(int signal, siginfo_t* info, void* /*context*/) {
  const auto* const address = static_cast<const std::byte*>(info->si_addr);
  const std::size_t count = g_region_count.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < count; ++i) {
    if (address < g_watch.regions[i].start || address >= g_watch.regions[i].end) {
      continue;
    }
    const bool hardware = info->si_code == BUS_MCEERR_AR || info->si_code == BUS_MCEERR_AO;
    end_without_page(hardware ? "guest memory: the host reports a hardware memory error in it"
                              : std::string_view(g_watch.what),
                     kExitSystem);
  }
  // Not guest memory: a fault of ours, which dies as it would have without us.
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

}  // namespace

void touch(std::span<const std::byte> bytes) {
  for (std::size_t at = 0; at < bytes.size(); at += kPage) {
    [[maybe_unused]] const std::byte value = *static_cast<const volatile std::byte*>(&bytes[at]);
  }
}

void end_without_page(std::string_view what, int status) {
  if (g_watch.at_exit != nullptr) {
    g_watch.at_exit();
  }
  say("vireo: ");
  say(what);
  say("\n");
  ::_exit(status);
}

std::string lost_page_text(const std::string& file) {
  return file.empty()
             ? "guest memory: the host could not provide a page (huge pages exhausted, the "
               "file behind it truncated, or a memory error)"
             : file +
                   ": guest memory could not be read from it any more (truncated, or its "
                   "disk fails)";
}

Result<> watch_bus_errors(const GuestMemory& memory, std::string what, void (*at_exit)()) {
  CHECK(memory.regions().size() <= kMaxRegions);
  std::size_t count = 0;
  for (const GuestMemory::Region& region : memory.regions()) {
    g_watch.regions[count++] = {region.host.data(), region.host.data() + region.host.size()};
  }
  g_watch.what = std::move(what);
  g_watch.at_exit = at_exit;
  g_region_count.store(count, std::memory_order_release);

  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  if (::sigaction(SIGBUS, &action, nullptr) < 0) {
    return fail_errno(errno, "sigaction SIGBUS");
  }
  return {};
}

void forget_bus_errors() {
  g_region_count.store(0, std::memory_order_release);
}

}  // namespace vireo
