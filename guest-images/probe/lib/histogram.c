// SPDX-License-Identifier: Apache-2.0
#include "histogram.h"

static uint64_t middle_of(unsigned bucket) {
  if (bucket < HISTOGRAM_STEPS) {
    return bucket;
  }
  unsigned shift = bucket / HISTOGRAM_STEPS - 1;
  uint64_t first = (uint64_t)(HISTOGRAM_STEPS + bucket % HISTOGRAM_STEPS) << shift;
  return first + (((uint64_t)1 << shift) >> 1);
}

uint64_t histogram_quantile(const struct histogram* histogram, uint64_t of_thousand) {
  uint64_t wanted = (histogram->total * of_thousand + 999) / 1000;
  uint64_t seen = 0;
  for (unsigned bucket = 0; bucket < sizeof(histogram->counts) / sizeof(uint64_t); ++bucket) {
    seen += histogram->counts[bucket];
    if (seen >= wanted && seen > 0) {
      return middle_of(bucket);
    }
  }
  return 0;
}
