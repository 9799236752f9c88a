// SPDX-License-Identifier: Apache-2.0
// Numbers about a VM for monitoring, and their two texts: JSON, and OpenMetrics (version 1.0.0).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace vireo {

struct MetricSample {
  std::string label_name;  ///< one label at most tells samples apart; empty: none
  std::string label_value;
  double value = 0;
};

struct Metric {
  enum class Type { kGauge, kCounter };
  std::string_view name;  ///< "vireo_cpu_seconds", without the counter's _total
  std::string_view help;
  Type type = Type::kGauge;
  std::vector<MetricSample> samples;
};

/// The content type of metrics_text().
inline constexpr std::string_view kOpenMetricsType =
    "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// {"version": 1, "vm": …, "metrics": {name: value, or {label: value}}}
std::string metrics_json(std::string_view vm, const std::vector<Metric>& metrics);
/// Each sample carries the label vm.
std::string metrics_text(std::string_view vm, const std::vector<Metric>& metrics);

}  // namespace vireo
