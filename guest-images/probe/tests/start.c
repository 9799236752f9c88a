// SPDX-License-Identifier: Apache-2.0
// For the benchmark `start`: mark 1 is written before any C runs, this is the first word behind it.
#include "tests.h"

void test_start(const struct argument* argument) {
  (void)argument;
  print("probe: start\n");
}
