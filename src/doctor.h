// SPDX-License-Identifier: Apache-2.0
// `vireo doctor`: what this host offers a VM, what each lack costs, and how to mend it. Main
// thread, while it is the only one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/doctor_checks.h"

namespace vireo {

struct Diagnosis {
  std::vector<Section> sections;

  /// Why no VM can run here: the first finding that says so, or nullptr.
  const Finding* blocker() const;
};

/// Makes every check; takes some 50 ms.
Diagnosis examine_host();

/// The report for people, lines of at most 100 columns.
std::string to_text(const Diagnosis& diagnosis);

/// The report for programs, version 1:
///   {"version": 1, "vireo": "0.1.0", "can_run": true,
///    "findings": [{"section": "kvm", "id": "kvm_device", "title": …, "state": "ok", "value": …,
///                  "number": null, "cost": "", "remedy": ""}, …]}
/// `state` is ok, lacking or unknown; `cost` and `remedy` are empty unless it is lacking; `number`
/// is the value as a whole number where it is one. Every id is there on every host.
std::string to_json(const Diagnosis& diagnosis);

}  // namespace vireo
