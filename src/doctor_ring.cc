// SPDX-License-Identifier: Apache-2.0
// The lines about io_uring, which carries all of vireo's input and output.
#include <cstddef>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "src/doctor_checks.h"
#include "src/io/uapi.h"
#include "src/machine.h"

namespace vireo {

namespace {

constexpr const char* kAllow =
    "sysctl kernel.io_uring_disabled=0, and the io_uring calls in the container's seccomp profile";
constexpr const char* kNewerKernel = "a host kernel of 6.1 or newer";

constexpr Check kSetup = {"io_uring", "io_uring", "no VM runs", kAllow};
constexpr Check kSingleIssuer = {"io_uring_single_issuer", "rings of one thread",
                                 "each submission takes a lock", kNewerKernel};
constexpr Check kDeferTaskrun = {"io_uring_defer_taskrun", "completions run when asked for",
                                 "completions interrupt the thread that serves the devices",
                                 kNewerKernel};
constexpr Check kOpcodes = {"io_uring_opcodes", "operations that vireo needs", "no VM runs",
                            kNewerKernel};
constexpr Check kRestrictions = {"io_uring_restrictions", "ring restrictions", "no VM runs",
                                 kNewerKernel};
constexpr Check kRegisteredRing = {"io_uring_registered_ring", "registered ring descriptor",
                                   "each submission looks the ring's descriptor up", kNewerKernel};

// Each kind of ring asks for a size of its own, so that a trace tells one call from the other.
constexpr unsigned kPlainEntries = 8;
constexpr unsigned kSingleIssuerEntries = 16;
constexpr unsigned kDeferTaskrunEntries = 32;

/// A ring for as long as it takes to ask about it; disabled, as restrictions want it.
class TestRing {
 public:
  TestRing(unsigned entries, unsigned flags)
      : result_(io_uring_queue_init(entries, &ring_, flags | IORING_SETUP_R_DISABLED)) {}
  TestRing(const TestRing&) = delete;
  TestRing& operator=(const TestRing&) = delete;
  ~TestRing() {
    if (result_ == 0) {
      io_uring_queue_exit(&ring_);
    }
  }

  /// The errno of io_uring_setup, or 0.
  int errnum() const { return -result_; }
  io_uring* get() { return &ring_; }

 private:
  io_uring ring_ = {};
  int result_;
};

Finding check_setup(int errnum) {
  return errnum == 0 ? found(kSetup, "available")
                     : blocking(kSetup, failure("io_uring_setup", errnum), ErrorCode::kSystem);
}

Finding check_flags(const Check& check, unsigned entries, unsigned flags) {
  const TestRing ring(entries, flags);
  return ring.errnum() == 0 ? found(check, "available")
                            : lacking(check, failure("io_uring_setup", ring.errnum()));
}

/// What `ask` finds on a ring of its own.
Finding ask_ring(const Check& check, Finding (*ask)(io_uring*)) {
  TestRing ring(kPlainEntries, 0);
  return ring.errnum() == 0 ? ask(ring.get())
                            : unknown(check, failure("io_uring_setup", ring.errnum()));
}

Finding ask_opcodes(io_uring* ring) {
  constexpr unsigned kOperations = 256;
  std::vector<std::byte> buffer(sizeof(io_uring_probe) + kOperations * sizeof(io_uring_probe_op));
  auto* const probe = static_cast<io_uring_probe*>(static_cast<void*>(buffer.data()));
  const int result = io_uring_register_probe(ring, probe, kOperations);
  if (result < 0) {
    return unknown(kOpcodes, failure("IORING_REGISTER_PROBE", -result));
  }
  std::string missing;
  for (const std::uint8_t opcode : ring_opcodes()) {
    if ((probe->ops[opcode].flags & IO_URING_OP_SUPPORTED) == 0) {
      missing += fmt::format("{}{}", missing.empty() ? "lacks those of the numbers " : ", ",
                             unsigned{opcode});
    }
  }
  if (!missing.empty()) {
    return blocking(kOpcodes, missing, ErrorCode::kSystem);
  }
  const unsigned known = probe->last_op + 1U;
  return found(kOpcodes, fmt::format("all {}; the kernel knows {}", ring_opcodes().size(), known),
               known);
}

Finding ask_restrictions(io_uring* ring) {
  io_uring_restriction restriction = {};
  restriction.opcode = IORING_RESTRICTION_SQE_OP;
  restriction.sqe_op = IORING_OP_READ;
  const int result = io_uring_register_restrictions(ring, &restriction, 1);
  return result == 0 ? found(kRestrictions, "available")
                     : blocking(kRestrictions, failure("IORING_REGISTER_RESTRICTIONS", -result),
                                ErrorCode::kSystem);
}

Finding ask_registered_ring(io_uring* ring) {
  const int enabled = io_uring_enable_rings(ring);
  if (enabled < 0) {
    return unknown(kRegisteredRing, failure("IORING_REGISTER_ENABLE_RINGS", -enabled));
  }
  const int result = io_uring_register_ring_fd(ring);
  return result == 1 ? found(kRegisteredRing, "available")
                     : lacking(kRegisteredRing, failure("IORING_REGISTER_RING_FDS", -result));
}

}  // namespace

Section check_io_uring() {
  Section section = {.id = "io_uring", .title = "io_uring"};
  std::vector<Finding>& findings = section.findings;
  const int errnum = TestRing(kPlainEntries, 0).errnum();
  findings.push_back(check_setup(errnum));
  if (errnum != 0) {
    for (const Check& check :
         {kSingleIssuer, kDeferTaskrun, kOpcodes, kRestrictions, kRegisteredRing}) {
      findings.push_back(unknown(check, "not asked, since there is no io_uring to ask"));
    }
    return section;
  }
  findings.push_back(check_flags(kSingleIssuer, kSingleIssuerEntries, IORING_SETUP_SINGLE_ISSUER));
  findings.push_back(check_flags(kDeferTaskrun, kDeferTaskrunEntries,
                                 IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN));
  findings.push_back(ask_ring(kOpcodes, ask_opcodes));
  findings.push_back(ask_ring(kRestrictions, ask_restrictions));
  findings.push_back(ask_ring(kRegisteredRing, ask_registered_ring));
  return section;
}

}  // namespace vireo
