// SPDX-License-Identifier: Apache-2.0
// The exit profile as JSON: for each vCPU and phase, every kind of exit with its count and time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "src/bus/bus.h"
#include "src/kvm/vcpu.h"

namespace vireo {

/// After the vCPUs have stopped.
std::string profile_json(const std::vector<std::unique_ptr<Vcpu>>& vcpus, const Bus& ports,
                         const Bus& mmio);

}  // namespace vireo
