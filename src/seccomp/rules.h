// SPDX-License-Identifier: Apache-2.0
// The system calls of a running VM, by the kind of thread that makes them: what is not here ends
// the process (SECCOMP_RET_KILL_PROCESS). make_filters.cc turns this list into filters when vireo
// is built; tests/sandbox holds it to what the suites use.
#pragma once

#include <array>
#include <cstdint>

#include <asm/termbits.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "src/base/pagemap_scan.h"
#include "src/kvm/uapi.h"

namespace vireo::seccomp {

// Who makes a call: bits of Rule::threads.
inline constexpr unsigned kMain = 1;   ///< the reactor's thread, which also ends the VM
inline constexpr unsigned kVcpu = 2;   ///< a vCPU's thread
inline constexpr unsigned kStart = 4;  ///< between the sandbox's entry and the last thread's start
inline constexpr unsigned kIo = 8;     ///< a thread that serves queues, and nothing else
inline constexpr unsigned kOffload = 16;  ///< a thread of the pool for calls that block
inline constexpr unsigned kFeeder = 32;   ///< the thread that brings guest memory from a snapshot
inline constexpr unsigned kAll = kMain | kVcpu | kStart | kIo | kOffload | kFeeder;

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
  const char* rare = nullptr;  ///< why the suites are not sure to see it, where that is so
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

constexpr Rule rare(const char* why, Rule rule) {
  rule.rare = why;
  return rule;
}

inline constexpr auto kRules = std::to_array<Rule>({
    // Locks, memory and signals: the C library's own needs.
    any(kAll, "futex"),
    any(kMain | kVcpu | kIo | kOffload | kFeeder, "brk"),
    rare("the heap was full just then", any(kStart, "brk")),
    any(kStart | kMain, "mmap"),  // the tables of a snapshot
    rare("a large block", any(kVcpu | kIo | kOffload | kFeeder, "mmap")),
    any(kMain, "munmap"),
    rare("a large block", any(kVcpu | kIo | kOffload | kFeeder, "munmap")),
    any(kStart, "mprotect"),
    any(kMain | kVcpu | kIo | kOffload | kFeeder,
        "madvise"),  // guest memory at a restart, the stack of a thread that ends
    any(kAll, "rt_sigprocmask"),
    any(kVcpu, "rt_sigreturn"),
    any(kStart, "rt_sigaction"),
    rare("the kernel's own, when a stop interrupts a wait with a limit",
         any(kAll, "restart_syscall")),
    any(kVcpu | kIo | kOffload | kFeeder | kStart, "exit"),
    any(kMain, "exit_group"),
    rare("a page of guest memory that cannot be had",
         any(kVcpu | kIo | kOffload | kFeeder, "exit_group")),
    rare("abort() and a signal that ends the process", any(kAll, "gettid")),
    rare("abort() and a signal that ends the process", any(kAll, "getpid")),
    rare("abort() and a signal that ends the process", any(kAll, "tgkill")),
    rare("answered without the kernel where the clock source allows it",
         any(kAll, "clock_gettime")),

    // Wake-ups, interrupts and the log.
    any(kAll, "write"),
    any(kMain | kStart, "sendto"),
    rare("an error in a log that is a socket", any(kVcpu | kIo, "sendto")),
    any(kMain, "poll"),
    rare("a log that is a pipe which cannot be opened again", any(kVcpu | kIo | kStart, "poll")),
    ioctl(kMain, KVM_IRQ_LINE),
    rare("ACPI's interrupt, when the guest has seen its power button", ioctl(kVcpu, KVM_IRQ_LINE)),

    // The guest.
    ioctl(kVcpu, KVM_RUN),
    ioctl(kVcpu, KVM_KVMCLOCK_CTRL),
    any(kStart, "timer_create"),  // the watch on its faults
    any(kStart, "timer_settime"),
    rare("100 ms of a vCPU's time", ioctl(kVcpu, KVM_GET_STATS_FD)),
    rare("100 ms of a vCPU's time", any(kVcpu, "pread64")),
    rare("a guest with PCI, which the probe has not: MSI-X", ioctl(kVcpu, KVM_SET_GSI_ROUTING)),
    rare("a guest with PCI moves a BAR", ioctl(kVcpu, KVM_IOEVENTFD)),
    rare("a guest with PCI starts anew", ioctl(kMain, KVM_IOEVENTFD)),
    any(kMain | kVcpu, "mincore"),  // a mark of the guest ends a phase of the profile

    // The reactor.
    any(kMain | kIo, "io_uring_enter"),
    // Reads of disks from the page cache; buffered writes, where the kernel has no way to begin
    // them.
    any(kMain | kIo, "preadv2"),
    any(kIo, "pwritev2"),
    equal(kStart, "io_uring_register", 1, IORING_REGISTER_ENABLE_RINGS),
    equal(kStart, "io_uring_register", 1, IORING_REGISTER_RING_FDS),
    equal(kMain, "io_uring_register", 1, IORING_UNREGISTER_RING_FDS),
    any(kMain | kStart, "close"),
    any(kMain, "shutdown"),
    any(kMain, "pread64"),  // KVM's counters, the kernel again at a restart
    any(kMain, "fcntl"),
    any(kMain, "newfstatat"),
    any(kMain, "getrusage"),
    any(kMain, "getrandom"),

    // The terminal.
    ioctl(kMain, TCGETS),
    ioctl(kMain, TCSETS),
    rare("a page of guest memory that cannot be had: the terminal is given back",
         ioctl(kVcpu | kIo | kOffload | kFeeder, TCGETS)),
    rare("a page of guest memory that cannot be had: the terminal is given back",
         ioctl(kVcpu | kIo | kOffload | kFeeder, TCSETS)),
    ioctl(kMain, TIOCGPGRP),
    any(kMain, "getpgrp"),

    // Reports, the log after a rotation, and the names that go at the end: below descriptors only.
    {.threads = kMain, .call = "openat", .compare = Compare::kDescriptor, .argument = 0},
    // … or of sandbox.allow_paths
    {.threads = kMain, .call = "openat2", .compare = Compare::kDescriptor, .argument = 0},
    any(kMain, "renameat"),
    any(kMain, "unlinkat"),
    any(kMain, "ftruncate"),  // an inherited pid file

    // A disk that changes while the VM runs: its file, and a new one.
    any(kMain, "statx"),
    any(kMain, "lseek"),
    rare("a block device in a disk's place", ioctl(kMain, BLKSSZGET)),
    rare("a block device in a disk's place", ioctl(kMain, BLKPBSZGET)),
    rare("a block device in a disk's place", ioctl(kMain, BLKIOOPT)),

    // A snapshot into its file.
    any(kOffload, "pwrite64"),
    any(kOffload, "ftruncate"),
    any(kOffload, "fsync"),
    any(kOffload, "pread64"),
    ioctl(kOffload, KVM_ENABLE_CAP),
    ioctl(kOffload | kMain, KVM_SET_USER_MEMORY_REGION),
    ioctl(kOffload, KVM_GET_DIRTY_LOG),
    ioctl(kOffload, KVM_CLEAR_DIRTY_LOG),

    ioctl(kOffload, kPagemapScan),
    rare("--working-set record", ioctl(kMain, kPagemapScan)),
    any(kOffload, "newfstatat"),
    any(kOffload, "fgetxattr"),
    rare("disks that are copied at a snapshot", ioctl(kOffload, FICLONE)),
    any(kMain, "fgetxattr"),
    any(kMain, "fsetxattr"),
    rare("a disk on a file system without attributes", any(kMain, "utimensat")),

    // Guest memory from a snapshot, while the guest runs.
    any(kFeeder, "read"),
    any(kFeeder, "pread64"),
    ioctl(kFeeder, UFFDIO_COPY),
    ioctl(kFeeder, UFFDIO_ZEROPAGE),
    ioctl(kFeeder, UFFDIO_UNREGISTER),

    // What a snapshot asks of KVM.
    ioctl(kMain, KVM_CHECK_EXTENSION),
    ioctl(kMain, KVM_GET_MSR_INDEX_LIST),
    ioctl(kMain, KVM_GET_MP_STATE),
    ioctl(kMain, KVM_GET_REGS),
    ioctl(kMain, KVM_GET_SREGS2),
    ioctl(kMain, KVM_GET_XCRS),
    ioctl(kMain, KVM_GET_XSAVE2),
    ioctl(kMain, KVM_GET_DEBUGREGS),
    ioctl(kMain, KVM_GET_LAPIC),
    ioctl(kMain, KVM_GET_MSRS),
    ioctl(kMain, KVM_GET_VCPU_EVENTS),
    ioctl(kMain, KVM_GET_TSC_KHZ),
    ioctl(kMain, KVM_GET_IRQCHIP),
    ioctl(kMain, KVM_GET_CLOCK),

    // What the control socket asks of KVM, and a restart.
    ioctl(kMain, KVM_SIGNAL_MSI),
    ioctl(kMain, KVM_SET_IRQCHIP),
    ioctl(kMain, KVM_SET_REGS),
    ioctl(kMain, KVM_GET_SREGS),
    ioctl(kMain, KVM_SET_SREGS),
    ioctl(kMain, KVM_SET_SREGS2),
    ioctl(kMain, KVM_SET_MSRS),
    ioctl(kMain, KVM_SET_LAPIC),
    ioctl(kMain, KVM_SET_MP_STATE),
    ioctl(kMain, KVM_SET_VCPU_EVENTS),
    ioctl(kMain, KVM_SET_DEBUGREGS),
    ioctl(kMain, KVM_SET_XSAVE),
    ioctl(kMain, KVM_SET_XCRS),

    // The vCPUs' threads, from their making to their own filter.
    rare("a kernel or container without clone3", any(kStart, "clone")),
    any(kStart, "clone3"),
    any(kStart, "set_robust_list"),
    any(kStart, "rseq"),
    any(kStart, "sched_setaffinity"),
    any(kStart, "sched_getaffinity"),
    equal(kStart, "prctl", 0, PR_SET_NAME),
    any(kStart, "seccomp"),

    // A VM that stood by becomes a snapshot, beside what a restart asks of KVM.
    ioctl(kStart, KVM_SET_CPUID2),
    rare("a snapshot from a host with another clock", ioctl(kStart, KVM_SET_TSC_KHZ)),
    ioctl(kStart, KVM_SET_CLOCK),
    rare("userfaultfd is to be had", ioctl(kStart, UFFDIO_API)),
    rare("userfaultfd is to be had", ioctl(kStart, UFFDIO_REGISTER)),

    // The way out where the main thread's filter is refused.
    rare("a refused filter", any(kStart, "io_uring_enter")),
    rare("a refused filter", equal(kStart, "io_uring_register", 1, IORING_UNREGISTER_RING_FDS)),
    rare("a refused filter", any(kStart, "exit_group")),
    rare("a refused filter", any(kStart, "unlinkat")),
    rare("a refused filter", any(kStart, "ftruncate")),
    rare("a refused filter", ioctl(kStart, TCGETS)),
    rare("a refused filter", ioctl(kStart, TCSETS)),
});

}  // namespace vireo::seccomp
