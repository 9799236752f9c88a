// SPDX-License-Identifier: Apache-2.0
// How fast the TSC runs. CPUID is asked at most a few times: some KVMs take 40 us for one.
#include "probe.h"

#define NOMINAL_KHZ 1000000

// Documentation/virt/kvm/x86/{cpuid,msr}.rst.
#define CPUID_HYPERVISOR 0x40000000
#define CPUID_KVM_FEATURES 0x40000001
#define CPUID_FREQUENCIES 0x40000010
#define KVM_FEATURE_CLOCKSOURCE2 (1u << 3)
#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01
#define KVM_SYSTEM_TIME_ENABLE 1

struct kvm_time {
  uint32_t version;
  uint32_t pad;
  uint64_t tsc_timestamp;
  uint64_t system_time;
  uint32_t tsc_to_system_mul;
  int8_t tsc_shift;
  uint8_t flags;
  uint8_t pad2[2];
};

static uint64_t found_khz;
static const char* found_where;
static volatile struct kvm_time time __attribute__((aligned(32)));

// The highest of KVM's own leaves, or 0.
static uint32_t last_kvm_leaf(void) {
  struct cpuid hypervisor = cpuid(CPUID_HYPERVISOR, 0);
  bool kvm = hypervisor.b == 0x4b4d564b && hypervisor.c == 0x564b4d56 && hypervisor.d == 0x4d;
  if (!kvm) {
    return 0;
  }
  return hypervisor.a != 0 ? hypervisor.a : CPUID_KVM_FEATURES;  // 0: old kernels
}

static bool has_kvmclock(uint32_t last_leaf) {
  return last_leaf >= CPUID_KVM_FEATURES &&
         (cpuid(CPUID_KVM_FEATURES, 0).a & KVM_FEATURE_CLOCKSOURCE2) != 0;
}

static uint64_t khz_of_kvmclock(void) {
  write_msr(MSR_KVM_SYSTEM_TIME_NEW, (uint64_t)&time | KVM_SYSTEM_TIME_ENABLE);
  uint32_t multiplier = time.tsc_to_system_mul;
  int shift = time.tsc_shift;
  write_msr(MSR_KVM_SYSTEM_TIME_NEW, 0);
  if (multiplier == 0) {
    return 0;
  }
  // nanoseconds = (ticks << shift) * multiplier >> 32
  uint64_t khz = ((uint64_t)1000000 << 32) / multiplier;
  return shift < 0 ? khz << -shift : khz >> shift;
}

static void find_khz(void) {
  found_where = "word";
  found_khz = number_word("tsc_khz", 0);
  if (found_khz != 0) {
    return;
  }
  uint32_t last = last_kvm_leaf();
  if (has_kvmclock(last)) {
    found_where = "kvmclock";
    found_khz = khz_of_kvmclock();
  }
  if (found_khz == 0 && last >= CPUID_FREQUENCIES) {
    found_where = "cpuid";
    found_khz = cpuid(CPUID_FREQUENCIES, 0).a;
  }
  if (found_khz == 0) {
    found_where = "guess";
    found_khz = NOMINAL_KHZ;
  }
}

uint64_t tsc_khz(void) {
  if (found_khz == 0) {
    find_khz();
  }
  return found_khz;
}

// nanoseconds = (ticks << shift) * multiplier >> 32
static uint64_t nanoseconds(uint64_t ticks, int shift, uint32_t multiplier) {
  uint64_t shifted = shift < 0 ? ticks >> -shift : ticks << shift;
  return (uint64_t)((unsigned __int128)shifted * multiplier >> 32);
}

uint64_t kvmclock_ns(void) {
  static bool registered;
  static bool there;
  if (!registered) {
    registered = true;
    (void)tsc_khz();  // which may register the page and give it up again
    there = has_kvmclock(last_kvm_leaf());
    if (there) {
      write_msr(MSR_KVM_SYSTEM_TIME_NEW, (uint64_t)&time | KVM_SYSTEM_TIME_ENABLE);
    }
  }
  if (!there) {
    return 0;
  }
  for (;;) {
    uint32_t version = time.version;
    uint64_t ns = time.system_time +
                  nanoseconds(tsc() - time.tsc_timestamp, time.tsc_shift, time.tsc_to_system_mul);
    if ((version & 1) == 0 && version == time.version) {
      return ns;
    }
  }
}

void print_tsc_source(void) {
  static bool printed;
  if (printed) {
    return;
  }
  printed = true;
  print_value("tsc_khz", tsc_khz());
  print_text_value("tsc_source", found_where);
}
