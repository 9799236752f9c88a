// SPDX-License-Identifier: Apache-2.0
#include "src/metrics.h"

#include <cmath>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

namespace vireo {

namespace {

constexpr double kExactIntegers = 9007199254740992;  // 2^53

nlohmann::ordered_json number(double value) {
  if (value == std::floor(value) && std::abs(value) < kExactIntegers) {
    return static_cast<std::int64_t>(value);
  }
  return value;
}

std::string number_text(double value) {
  return number(value).dump();
}

/// A label's value, as OpenMetrics escapes it.
std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '\\' || c == '"') {
      result += '\\';
    }
    result += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return result;
}

}  // namespace

std::string metrics_json(std::string_view vm, const std::vector<Metric>& metrics) {
  nlohmann::ordered_json values = nlohmann::ordered_json::object();
  for (const Metric& metric : metrics) {
    nlohmann::ordered_json& value = values[std::string(metric.name)];
    for (const MetricSample& sample : metric.samples) {
      if (sample.label_name.empty()) {
        value = number(sample.value);
      } else {
        value[sample.label_value] = number(sample.value);
      }
    }
  }
  const nlohmann::ordered_json root = {{"version", 1}, {"vm", vm}, {"metrics", std::move(values)}};
  return root.dump(2) + "\n";
}

std::string metrics_text(std::string_view vm, const std::vector<Metric>& metrics) {
  std::string text;
  for (const Metric& metric : metrics) {
    const bool counter = metric.type == Metric::Type::kCounter;
    text += fmt::format("# TYPE {} {}\n# HELP {} {}\n", metric.name, counter ? "counter" : "gauge",
                        metric.name, metric.help);
    for (const MetricSample& sample : metric.samples) {
      std::string labels = fmt::format("vm=\"{}\"", escaped(vm));
      if (!sample.label_name.empty()) {
        labels += fmt::format(",{}=\"{}\"", sample.label_name, escaped(sample.label_value));
      }
      text += fmt::format("{}{}{{{}}} {}\n", metric.name, counter ? "_total" : "", labels,
                          number_text(sample.value));
    }
  }
  return text + "# EOF\n";
}

}  // namespace vireo
