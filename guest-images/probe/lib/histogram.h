// SPDX-License-Identifier: Apache-2.0
// Counts values in buckets 3 % wide.
#ifndef VIREO_PROBE_HISTOGRAM_H
#define VIREO_PROBE_HISTOGRAM_H

#include "probe.h"

#define HISTOGRAM_STEP_BITS 5  // each power of two is cut into 32
#define HISTOGRAM_STEPS (1u << HISTOGRAM_STEP_BITS)

struct histogram {
  uint64_t total;
  uint64_t counts[64 * HISTOGRAM_STEPS];
};

static inline unsigned histogram_bucket(uint64_t value) {
  if (value < HISTOGRAM_STEPS) {
    return (unsigned)value;
  }
  unsigned shift = 63 - (unsigned)__builtin_clzll(value) - HISTOGRAM_STEP_BITS;
  return (shift + 1) * HISTOGRAM_STEPS + (unsigned)(value >> shift) - HISTOGRAM_STEPS;
}

static inline void histogram_add(struct histogram* histogram, uint64_t value) {
  ++histogram->counts[histogram_bucket(value)];
  ++histogram->total;
}

// The middle of the bucket below or in which so many of a thousand values lie.
uint64_t histogram_quantile(const struct histogram* histogram, uint64_t of_thousand);

#endif
