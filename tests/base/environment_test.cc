// SPDX-License-Identifier: Apache-2.0
#include "src/base/environment.h"

#include <cstdlib>

#include "tests/support/catch.h"

namespace vireo {
namespace {

TEST_CASE("environment: a whole number, and nothing else") {
  constexpr const char* kName = "VIREO_TEST_NUMBER";
  ::unsetenv(kName);
  CHECK_FALSE(environment_number(kName));
  for (const char* const text : {"", "-1", "1 ", "x", "1x", "18446744073709551616"}) {
    ::setenv(kName, text, 1);
    CHECK_FALSE(environment_number(kName));
  }
  ::setenv(kName, "18446744073709551615", 1);
  CHECK(environment_number(kName) == ~std::uint64_t{0});
  ::unsetenv(kName);
}

}  // namespace
}  // namespace vireo
