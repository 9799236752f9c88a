// SPDX-License-Identifier: Apache-2.0
#include "src/io/signals.h"

#include <cerrno>

#include <pthread.h>

namespace vireo {

namespace {

sigset_t set_of(std::span<const int> signals) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : signals) {
    ::sigaddset(&set, signal);
  }
  return set;
}

}  // namespace

Result<> block_signals(std::span<const int> signals) {
  const sigset_t set = set_of(signals);
  if (const int error = ::pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0) {
    return fail_errno(error, "blocking signals");
  }
  return {};
}

SignalWatch::SignalWatch(Reactor& reactor) : reactor_(reactor) {
  op_.bind<SignalWatch, &SignalWatch::on_read>(this);
}

Result<> SignalWatch::open(std::span<const int> signals) {
  TRY(block_signals(signals));
  const sigset_t set = set_of(signals);
  fd_ = UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC));
  if (!fd_) {
    return fail_errno(errno, "signalfd");
  }
  return {};
}

void SignalWatch::stop() {
  stopped_ = true;
  reactor_.ring().cancel(op_);
}

void SignalWatch::arm() {
  reactor_.ring().prep_read(op_, fd_.get(), std::as_writable_bytes(std::span(&info_, 1)),
                            Ring::kNoOffset);
}

void SignalWatch::on_read(Op& /*op*/, Completion completion) {
  if (completion.result == static_cast<int>(sizeof(info_))) {
    deliver_(owner_, static_cast<int>(info_.ssi_signo));
  }
  if (!stopped_ && completion.result != -ECANCELED) {
    arm();
  }
}

}  // namespace vireo
