// SPDX-License-Identifier: Apache-2.0
// The system calls of a running VM, by the kind of thread that makes them: what is not here ends
// the process (SECCOMP_RET_KILL_PROCESS). make_filters.cc turns this list into filters when vireo
// is built; tests/sandbox holds it to what the suites use.
#pragma once

#include <array>
#include <cstdint>

#include <asm/termbits.h>
#include <linux/io_uring.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "src/kvm/uapi.h"

namespace vireo::seccomp {

// Who makes a call: bits of Rule::threads.
inline constexpr unsigned kMain = 1;   ///< the reactor's thread, which also ends the VM
inline constexpr unsigned kVcpu = 2;   ///< a vCPU's thread
inline constexpr unsigned kStart = 4;  ///< between the sandbox's entry and the last thread's start
inline constexpr unsigned kAll = kMain | kVcpu | kStart;

/// How an argument is compared.
enum class Compare : std::uint8_t {
  kNone,        ///< any arguments
  kEqual,       ///< the lower 32 bits are `value`
  kDescriptor,  ///< a descriptor, so not AT_FDCWD
};

struct Rule {
  unsigned threads = 0;
  const char* call = nullptr;  ///< the system call's name
  Compare compare = Compare::kNone;
  unsigned argument = 0;
  std::uint32_t value = 0;
};

constexpr Rule any(unsigned threads, const char* call) {
  return {.threads = threads, .call = call};
}
constexpr Rule equal(unsigned threads, const char* call, unsigned argument, std::uint32_t value) {
  return {.threads = threads,
          .call = call,
          .compare = Compare::kEqual,
          .argument = argument,
          .value = value};
}
constexpr Rule ioctl(unsigned threads, unsigned long request) {
  return equal(threads, "ioctl", 1, static_cast<std::uint32_t>(request));
}

inline constexpr auto kRules = std::to_array<Rule>({
    // Locks, memory and signals: the C library's own needs.
    any(kAll, "futex"),
    any(kAll, "madvise"),
    any(kAll, "mmap"),
    any(kAll, "munmap"),
    any(kAll, "mprotect"),
    any(kAll, "brk"),
    any(kAll, "rt_sigprocmask"),
    any(kAll, "rt_sigreturn"),
    any(kAll, "rt_sigaction"),
    any(kAll, "sched_yield"),
    any(kAll, "restart_syscall"),
    any(kAll, "gettid"),
    any(kAll, "getpid"),
    any(kAll, "tgkill"),
    any(kAll, "exit"),
    any(kAll, "exit_group"),
    any(kAll, "clock_gettime"),

    // Wake-ups, interrupts and the log.
    any(kAll, "write"),
    any(kAll, "sendto"),
    any(kAll, "poll"),
    ioctl(kMain | kVcpu, KVM_IRQ_LINE),

    // The guest.
    ioctl(kVcpu, KVM_RUN),
    ioctl(kVcpu, KVM_KVMCLOCK_CTRL),
    any(kMain | kVcpu, "mincore"),  // a mark of the guest ends a phase of the profile

    // The reactor.
    any(kMain | kStart, "io_uring_enter"),
    equal(kStart, "io_uring_register", 1, IORING_REGISTER_ENABLE_RINGS),
    equal(kStart, "io_uring_register", 1, IORING_REGISTER_RING_FDS),
    equal(kMain | kStart, "io_uring_register", 1, IORING_UNREGISTER_RING_FDS),
    any(kMain | kStart, "close"),
    any(kMain, "shutdown"),
    any(kMain, "getsockopt"),
    any(kMain, "read"),
    any(kMain, "pread64"),  // KVM's counters, the kernel again at a restart
    any(kMain, "lseek"),
    any(kMain, "fcntl"),
    any(kMain, "fstat"),
    any(kMain, "newfstatat"),
    any(kMain, "getrusage"),
    any(kMain, "getrandom"),

    // The terminal.
    ioctl(kMain | kStart, TCGETS),
    ioctl(kMain | kStart, TCSETS),
    ioctl(kMain | kStart, TCSETSW),
    ioctl(kMain | kStart, TCSETSF),
    ioctl(kMain, TIOCGPGRP),

    // Reports, the log after a rotation, and the names that go at the end: below descriptors only.
    {.threads = kMain, .call = "openat", .compare = Compare::kDescriptor, .argument = 0},
    any(kMain, "renameat"),
    any(kMain | kStart, "unlinkat"),
    any(kMain | kStart, "ftruncate"),

    // What the control socket asks of KVM, and a restart.
    ioctl(kMain, KVM_SIGNAL_MSI),
    ioctl(kMain, KVM_SET_IRQCHIP),
    ioctl(kMain, KVM_SET_REGS),
    ioctl(kMain, KVM_GET_SREGS),
    ioctl(kMain, KVM_SET_SREGS),
    ioctl(kMain, KVM_SET_MSRS),
    ioctl(kMain, KVM_SET_LAPIC),
    ioctl(kMain, KVM_SET_MP_STATE),
    ioctl(kMain, KVM_SET_VCPU_EVENTS),
    ioctl(kMain, KVM_SET_DEBUGREGS),
    ioctl(kMain, KVM_SET_XSAVE),
    ioctl(kMain, KVM_SET_XCRS),

    // The vCPUs' threads, from their making to their own filter.
    any(kStart, "clone"),
    any(kStart, "clone3"),
    any(kStart, "set_robust_list"),
    any(kStart, "rseq"),
    any(kStart, "sched_setaffinity"),
    any(kStart, "sched_getaffinity"),
    equal(kStart, "prctl", 0, PR_SET_NAME),
    any(kStart, "seccomp"),
});

}  // namespace vireo::seccomp
