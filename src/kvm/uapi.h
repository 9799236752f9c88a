// SPDX-License-Identifier: Apache-2.0
// The one door to linux/kvm.h. Older kernel headers declare flexible arrays behind an empty struct,
// which has no size in C and one byte in C++: structures grow, and with them the numbers of ioctls.
#pragma once

#include <linux/stddef.h>

#undef __DECLARE_FLEX_ARRAY
// NOLINTNEXTLINE(bugprone-reserved-identifier): the kernel's own name, in the form that C++ reads.
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[]

#include <linux/kvm.h>

static_assert(sizeof(kvm_cpuid2) == 8 && sizeof(kvm_msrs) == 8);
