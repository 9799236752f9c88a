// SPDX-License-Identifier: Apache-2.0
#include "devices/legacy/terminal.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include <termios.h>
#include <unistd.h>

namespace vireo {

namespace {

// One terminal a process, and a signal handler must find it.
// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables)
termios g_before;
termios g_raw;
std::atomic<int> g_raw_fd = -1;
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

void on_fatal_signal(int signal) {
  restore_terminal();
  // SA_RESETHAND has put the default back: the process dies as it would have without us.
  ::raise(signal);
}

void restore_on_fatal_signals() {
  struct sigaction action = {};
  action.sa_handler = on_fatal_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_NODEFER);
  for (const int signal : std::array{SIGABRT, SIGSEGV, SIGILL, SIGFPE, SIGSYS, SIGQUIT, SIGHUP}) {
    struct sigaction present = {};
    // A handler that is there (a sanitizer's, our own for SIGHUP) stays.
    if (::sigaction(signal, nullptr, &present) == 0 && present.sa_handler == SIG_DFL) {
      ::sigaction(signal, &action, nullptr);
    }
  }
}

}  // namespace

bool owns_terminal(int fd) {
  return ::isatty(fd) == 1 && ::tcgetpgrp(fd) == ::getpgrp();
}

Result<> make_terminal_raw(int fd) {
  if (::tcgetattr(fd, &g_before) < 0) {
    return fail_errno(errno, "serial: reading the terminal's settings");
  }
  g_raw = g_before;
  ::cfmakeraw(&g_raw);
  // Raw input only: log lines of ours still want their carriage returns.
  g_raw.c_oflag = g_before.c_oflag;
  if (::tcsetattr(fd, TCSANOW, &g_raw) < 0) {
    return fail_errno(errno, "serial: raw mode of the terminal");
  }
  g_raw_fd = fd;
  restore_on_fatal_signals();
  [[maybe_unused]] static const int registered = std::atexit(restore_terminal);
  return {};
}

Result<> make_pty_raw(int fd) {
  termios settings = {};
  if (::tcgetattr(fd, &settings) < 0) {
    return fail_errno(errno, "serial: reading the pseudo-terminal's settings");
  }
  ::cfmakeraw(&settings);
  if (::tcsetattr(fd, TCSANOW, &settings) < 0) {
    return fail_errno(errno, "serial: raw mode of the pseudo-terminal");
  }
  return {};
}

void renew_raw_terminal() {
  if (const int fd = g_raw_fd; fd >= 0 && owns_terminal(fd)) {
    ::tcsetattr(fd, TCSANOW, &g_raw);
  }
}

void restore_terminal() {
  if (const int fd = g_raw_fd.exchange(-1); fd >= 0) {
    ::tcsetattr(fd, TCSANOW, &g_before);
  }
}

}  // namespace vireo
