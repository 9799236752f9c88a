// SPDX-License-Identifier: Apache-2.0
#include "src/ctl_print.h"

#include <algorithm>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/config_value.h"

namespace vireo {

namespace {

using Json = nlohmann::ordered_json;

std::string value_text(const Json& value) {
  return printable(value.is_string() ? value.get<std::string>() : value.dump());
}

void flatten(const Json& json, const std::string& prefix, std::string& text) {
  for (const auto& [key, value] : json.items()) {
    if (value.is_object() && !value.empty()) {
      flatten(value, prefix + key + ".", text);
    } else if (prefix.empty() && key == "version") {
      continue;
    } else {
      text += fmt::format("{}: {}\n", printable(prefix + key), value_text(value));
    }
  }
}

std::string text_at(const Json& json, const char* key) {
  return json.contains(key) ? value_text(json.at(key)) : std::string("-");
}

std::uint64_t number_at(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}

/// What an object has there; nothing to go through where `json` is none, or has not.
Json part_at(const Json& json, const char* key) {
  return json.contains(key) ? json.at(key) : Json::array();
}

/// The exits of all vCPUs, those that cost most first.
std::string stats_table(const Json& json) {
  struct Row {
    std::string what;
    std::uint64_t count = 0;
    std::uint64_t us = 0;
  };
  std::vector<Row> rows;
  std::string text;
  const Json vcpus = part_at(json, "vcpus");
  const Json kvm = part_at(json, "kvm");
  for (const Json& vcpu : vcpus) {
    const Json exits = part_at(vcpu, "exits");
    text += fmt::format("vCPU {}: {:.3f} s in KVM_RUN\n", number_at(vcpu, "vcpu"),
                        static_cast<double>(number_at(vcpu, "in_kvm_run_us")) / 1e6);
    for (const Json& exit : exits) {
      const std::string what =
          fmt::format("{:<8} {:<12} {:<6} {}", text_at(exit, "reason"), text_at(exit, "address"),
                      text_at(exit, "direction"), text_at(exit, "device"));
      const auto found = std::ranges::find(rows, what, &Row::what);
      Row& row = found != rows.end() ? *found : rows.emplace_back(Row{.what = what});
      row.count += number_at(exit, "count");
      row.us += number_at(exit, "handling_us");
    }
  }
  std::ranges::sort(rows, std::ranges::greater(), &Row::us);
  text += fmt::format("{:>10} {:>12}  {}\n", "exits", "handling us",
                      "reason   address      way    device");
  for (const Row& row : rows) {
    text += fmt::format("{:>10} {:>12}  {}\n", row.count, row.us, row.what);
  }
  text += "KVM's own counters:\n";
  for (const auto& [name, value] : kvm.items()) {
    text += fmt::format("  {}: {}\n", printable(name), value_text(value));
  }
  return text;
}

}  // namespace

std::string answer_for_people(std::string_view verb, const std::string& json) {
  const Json parsed = Json::parse(json, nullptr, false);
  if (!parsed.is_object()) {
    return printable(json) + "\n";
  }
  if (verb == "stats") {
    return stats_table(parsed);
  }
  std::string text;
  flatten(parsed.contains("config") ? parsed.at("config") : parsed, "", text);
  return text;
}

std::string event_for_people(const std::string& json) {
  const Json parsed = Json::parse(json, nullptr, false);
  if (!parsed.is_object()) {
    return printable(json) + "\n";
  }
  std::string text =
      fmt::format("{:10.3f} s  {}", static_cast<double>(number_at(parsed, "at_us")) / 1e6,
                  text_at(parsed, "event"));
  if (parsed.contains("detail")) {
    text += ": " + text_at(parsed, "detail");
  }
  return text + "\n";
}

std::string refusal_text(const std::string& json) {
  const Json parsed = Json::parse(json, nullptr, false);
  return parsed.is_object() && parsed.contains("error") ? text_at(parsed, "error")
                                                        : printable(json);
}

}  // namespace vireo
