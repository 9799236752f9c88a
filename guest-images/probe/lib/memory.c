// SPDX-License-Identifier: Apache-2.0
// The functions that a compiler may call without being asked, also in freestanding code.
#include "probe.h"

void* memcpy(void* to, const void* from, size_t size) {
  void* end = to;
  __asm__ volatile("rep movsb" : "+D"(end), "+S"(from), "+c"(size) : : "memory");
  return to;
}

void* memset(void* to, int value, size_t size) {
  void* end = to;
  __asm__ volatile("rep stosb" : "+D"(end), "+c"(size) : "a"(value) : "memory");
  return to;
}
