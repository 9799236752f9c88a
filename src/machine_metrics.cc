// SPDX-License-Identifier: Apache-2.0
// What the machine counts.
#include <array>
#include <atomic>
#include <charconv>
#include <map>
#include <string>

#include <sys/resource.h>
#include <unistd.h>

#include "src/base/log.h"
#include "src/exit_report.h"
#include "src/machine.h"
#include "src/metrics.h"

namespace vireo {

namespace {

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

double seconds_of_ns(std::uint64_t ns) {
  return static_cast<double>(ns) / 1e9;
}

/// The second number of /proc/self/statm, in bytes.
double resident_bytes(int statm) {
  std::array<char, 128> text = {};
  const ssize_t size = ::pread(statm, text.data(), text.size(), 0);
  const std::string_view all(text.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
  const std::string_view pages = all.substr(std::min(all.find(' ') + 1, all.size()));
  std::uint64_t count = 0;
  std::from_chars(pages.data(), pages.data() + pages.size(), count);
  return static_cast<double>(count) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

/// What the disks have done, each count by their ids.
void add_disk_metrics(const std::vector<const BlockDevice*>& disks, std::vector<Metric>& metrics) {
  struct Count {
    std::string_view name;
    std::string_view help;
    std::atomic<std::uint64_t> BlockCounters::* counter;
  };
  constexpr std::array<Count, 9> kCounts = {{
      {"vireo_disk_reads", "Reads that are done", &BlockCounters::reads},
      {"vireo_disk_writes", "Writes that are done", &BlockCounters::writes},
      {"vireo_disk_flushes", "Flushes that are done", &BlockCounters::flushes},
      {"vireo_disk_discards", "Discards that are done, and zeroes written",
       &BlockCounters::discards},
      {"vireo_disk_read_bytes", "Bytes of the reads", &BlockCounters::read_bytes},
      {"vireo_disk_written_bytes", "Bytes of the writes", &BlockCounters::written_bytes},
      {"vireo_disk_errors", "Requests that the host failed", &BlockCounters::errors},
      {"vireo_disk_refused", "Requests of the guest that cannot be", &BlockCounters::refused},
      {"vireo_disk_throttled", "Waits for a rate limit", &BlockCounters::throttled},
  }};
  for (const Count& count : kCounts) {
    Metric metric = {count.name, count.help, Metric::Type::kCounter, {}};
    for (const BlockDevice* const disk : disks) {
      const std::uint64_t value = (disk->counters().*count.counter).load(std::memory_order_relaxed);
      metric.samples.push_back({"disk", disk->id(), static_cast<double>(value)});
    }
    if (!disks.empty()) {
      metrics.push_back(std::move(metric));
    }
  }
}

}  // namespace

std::vector<Metric> Machine::metrics() const {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  using enum Metric::Type;
  std::vector<Metric> metrics = {
      {"vireo_uptime_seconds",
       "Since the process started",
       kGauge,
       {{"", "", seconds_of_ns(monotonic_ns() - timeline_.start_ns())}}},
      {"vireo_ready", "Whether the guest is ready", kGauge, {{"", "", ready_ ? 1.0 : 0.0}}},
      {"vireo_paused",
       "Whether the guest stands still",
       kGauge,
       {{"", "", state_ == MachineState::kPaused ? 1.0 : 0.0}}},
      {"vireo_restarts",
       "Reboots of the guest within this process",
       kCounter,
       {{"", "", static_cast<double>(restarts_)}}},
      {"vireo_cpu_seconds",
       "CPU time of the process, the guest's included",
       kCounter,
       {{"mode", "user", seconds(usage.ru_utime)}, {"mode", "system", seconds(usage.ru_stime)}}},
      {"vireo_memory_bytes",
       "Memory that the guest has",
       kGauge,
       {{"", "", static_cast<double>(memory_->size())}}},
      {"vireo_console_bytes",
       "Bytes that the guest wrote to its console",
       kCounter,
       {{"", "", static_cast<double>(devices_->console().transmitted())}}},
      {"vireo_console_lost_bytes",
       "Of these, what no reader took",
       kCounter,
       {{"", "", static_cast<double>(devices_->console().lost())}}},
  };
  if (statm_) {
    metrics.push_back({"vireo_resident_bytes",
                       "Memory that the process holds, the guest's included",
                       kGauge,
                       {{"", "", resident_bytes(statm_.get())}}});
  }
  Metric run = {"vireo_vcpu_run_seconds", "Time inside KVM_RUN", kCounter, {}};
  Metric handling = {"vireo_exit_handling_seconds", "Time in the handling of exits", kCounter, {}};
  Metric exits = {"vireo_exits", "Exits from KVM_RUN", kCounter, {}};
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> by_reason;
  for (const auto& vcpu : vcpus_) {
    const ExitStats& stats = *vcpu->exit_stats();
    run.samples.push_back({"vcpu", std::to_string(vcpu->index()), seconds_of_ns(stats.run_ns())});
    for (const ExitRecord& record : stats.records()) {
      auto& [count, ns] = by_reason[exit_reason_name(record.reason)];
      count += record.count;
      ns += record.handling_ns;
    }
  }
  for (const auto& [reason, sum] : by_reason) {
    exits.samples.push_back({"reason", reason, static_cast<double>(sum.first)});
    handling.samples.push_back({"reason", reason, seconds_of_ns(sum.second)});
  }
  for (Metric* const metric : {&run, &exits, &handling}) {
    if (!metric->samples.empty()) {
      metrics.push_back(std::move(*metric));
    }
  }
  add_disk_metrics(devices_->disks(), metrics);
  return metrics;
}

}  // namespace vireo
