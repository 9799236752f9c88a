// SPDX-License-Identifier: Apache-2.0
// The one door to Catch: Debian 12 has version 2, newer systems version 3 under other headers.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
