// SPDX-License-Identifier: Apache-2.0
#include "tests.h"

void test_hello(const struct argument* argument) {
  (void)argument;
  print("probe: hello from CPL 3\n");
}
