// SPDX-License-Identifier: Apache-2.0
// What tests of the loop and of its ring share.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "src/io/reactor.h"
#include "tests/support/catch.h"

namespace vireo {

inline constexpr std::uint64_t kMillisecond = 1'000'000;

/// The features as they are, and with each of them switched off.
inline const std::array kFeatureSets = {
    RingFeatures{},
    RingFeatures{.single_issuer = false},
    RingFeatures{.defer_taskrun = false},
    RingFeatures{.registered_ring = false},
    RingFeatures{.multishot = false},
};

inline std::unique_ptr<Reactor> started(const Ring::Config& config) {
  auto reactor = Reactor::create(config);
  REQUIRE(reactor.has_value());
  REQUIRE((*reactor)->start().has_value());
  return std::move(*reactor);
}

/// One operation, and what it completed with; stops the reactor at `until` completions.
struct Probe {
  explicit Probe(Reactor& on, std::size_t until = 1) : reactor(on), target(until) {
    op.bind<Probe, &Probe::on_done>(this);
  }
  void on_done(Op& /*op*/, Completion completion) {
    results.push_back(completion);
    if (results.size() == target) {
      reactor.stop();
    }
  }

  Reactor& reactor;
  std::size_t target;
  Op op;
  std::vector<Completion> results;
};

}  // namespace vireo
