// SPDX-License-Identifier: Apache-2.0
#include "src/doctor.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/config_value.h"

namespace vireo {

namespace {

constexpr std::size_t kColumns = 100;
/// Where the text of a finding begins, behind its state.
constexpr std::size_t kIndent = 11;

std::string_view name_of(FindingState state) {
  switch (state) {
    case FindingState::kOk:
      return "ok";
    case FindingState::kLacking:
      return "lacking";
    case FindingState::kUnknown:
      return "unknown";
  }
  std::unreachable();
}

/// Appends `text` to the line that ends `report` and has `column` columns, going on in a new line,
/// indented, before a word that would cross the right edge.
void append_wrapped(std::string& report, std::size_t column, std::string_view text) {
  for (bool first = true; !text.empty(); first = false) {
    const std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(std::min(word.size() + 1, text.size()));
    const std::size_t width = word.size() + (first ? 0 : 1);
    if (!first && column + width > kColumns) {
      report += '\n';
      report.append(kIndent, ' ');
      column = kIndent;
    } else if (!first) {
      report += ' ';
      ++column;
    }
    report += word;
    column += word.size();
  }
  report += '\n';
}

void append_finding(std::string& report, const Finding& finding) {
  report += fmt::format("  {:<{}}", name_of(finding.state), kIndent - 2);
  append_wrapped(report, kIndent, fmt::format("{}: {}", finding.title, printable(finding.value)));
  if (finding.state == FindingState::kLacking) {
    report.append(kIndent, ' ');
    append_wrapped(report, kIndent, "costs: " + finding.cost);
    report.append(kIndent, ' ');
    append_wrapped(report, kIndent, "mend: " + finding.remedy);
  }
}

}  // namespace

const Finding* Diagnosis::blocker() const {
  for (const Section& section : sections) {
    for (const Finding& finding : section.findings) {
      if (finding.blocker) {
        return &finding;
      }
    }
  }
  return nullptr;
}

Diagnosis examine_host() {
  Diagnosis diagnosis;
  // The sandbox last: one of its parts cannot be tried without taking it for the whole process.
  for (Section (*const check)() : {check_system, check_kvm, check_io_uring, check_memory,
                                   check_network, check_limits, check_sandbox}) {
    diagnosis.sections.push_back(check());
  }
  return diagnosis;
}

std::string to_text(const Diagnosis& diagnosis) {
  std::size_t lines = 0;
  std::size_t lacks = 0;
  std::size_t unknowns = 0;
  std::string findings;
  for (const Section& section : diagnosis.sections) {
    findings += fmt::format("\n{}\n", section.title);
    for (const Finding& finding : section.findings) {
      append_finding(findings, finding);
      ++lines;
      lacks += finding.state == FindingState::kLacking ? 1 : 0;
      unknowns += finding.state == FindingState::kUnknown ? 1 : 0;
    }
  }
  std::string report;
  if (const Finding* const blocker = diagnosis.blocker()) {
    append_wrapped(report, 0,
                   fmt::format("vireo {}: no VM can run here: {}: {}", VIREO_VERSION,
                               blocker->title, printable(blocker->value)));
  } else {
    report = fmt::format("vireo {}: VMs can run here\n", VIREO_VERSION);
  }
  report += fmt::format("{} checks: {} ok, {} lacking, {} unknown\n", lines,
                        lines - lacks - unknowns, lacks, unknowns);
  return report + findings;
}

std::string to_json(const Diagnosis& diagnosis) {
  nlohmann::ordered_json findings = nlohmann::ordered_json::array();
  for (const Section& section : diagnosis.sections) {
    for (const Finding& finding : section.findings) {
      nlohmann::ordered_json number = nullptr;
      if (finding.number) {
        number = *finding.number;
      }
      findings.push_back({{"section", section.id},
                          {"id", finding.id},
                          {"title", finding.title},
                          {"state", name_of(finding.state)},
                          {"value", finding.value},
                          {"number", number},
                          {"cost", finding.cost},
                          {"remedy", finding.remedy}});
    }
  }
  const nlohmann::ordered_json root = {{"version", 1},
                                       {"vireo", VIREO_VERSION},
                                       {"can_run", diagnosis.blocker() == nullptr},
                                       {"findings", findings}};
  // A value may quote what /proc holds: names of cgroups need not be UTF-8.
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace vireo
