// SPDX-License-Identifier: Apache-2.0
// probe=spin MS: a vCPU that is busy for so long (1000 ms without a number), never leaving CPL 3.
#include "tests.h"

void test_spin(const struct argument* argument) {
  uint64_t ms = argument->given ? argument->number : 1000;
  print_tsc_source();
  uint64_t end = tsc() + ms * tsc_khz();
  uint64_t rounds = 0;
  print_value("spin_ms", ms);
  while (tsc() < end) {
    ++rounds;
  }
  print_value("spin_rounds", rounds);
}
