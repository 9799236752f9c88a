// SPDX-License-Identifier: Apache-2.0
// Catch's own main, compiled once and without sanitizers: it takes over a minute otherwise.
#define CATCH_CONFIG_MAIN
#include "tests/support/catch.h"
