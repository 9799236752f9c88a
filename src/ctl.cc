// SPDX-License-Identifier: Apache-2.0
#include "src/ctl.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <span>
#include <string_view>

#include <unistd.h>

#include <fmt/core.h>

#include "src/base/colour.h"
#include "src/base/unix_socket.h"
#include "src/config_value.h"
#include "src/ctl_print.h"
#include "src/http.h"
#include "src/manual/verbs.h"

namespace vireo {

namespace {

constexpr int kExitRefused = 1;
constexpr int kExitNobody = 69;
constexpr unsigned kHttpOk = 200;

const manual::Verb* find_verb(std::string_view name) {
  const auto* const found = std::ranges::find(manual::kVerbs, name, &manual::Verb::name);
  return found == manual::kVerbs.end() ? nullptr : found;
}

Result<> send_all(int fd, std::string_view text) {
  return write_full(fd, std::as_bytes(std::span(text)));
}

/// Reads up to the end of the response; false where the connection ended before.
Result<bool> receive(int fd, HttpResponseParser& parser) {
  std::array<char, 16384> buffer = {};
  while (!parser.complete()) {
    const ssize_t size = ::read(fd, buffer.data(), buffer.size());
    if (size < 0 && errno == EINTR) {
      continue;
    }
    // Reset: a listener was closed (by a service manager that gave up, say) with this in its queue.
    if (size == 0 || (size < 0 && errno == ECONNRESET)) {
      return false;
    }
    if (size < 0) {
      return fail_errno(errno, "reading the answer");
    }
    if (!parser.feed({buffer.data(), static_cast<std::size_t>(size)})) {
      return fail(ErrorCode::kSystem, "the answer is no HTTP: is this the socket of a VM?");
    }
  }
  return true;
}

/// The VM's process holds the connection as long as it lives.
void wait_for_end(int fd) {
  std::array<char, 256> rest = {};
  ssize_t size = 0;
  do {
    size = ::read(fd, rest.data(), rest.size());
  } while (size > 0 || (size < 0 && errno == EINTR));
}

void tell(std::string_view message) {
  std::fputs(fmt::format("{} {}\n", message_prefix(), message).c_str(), stderr);
}

int nobody(std::string_view why) {
  tell(printable(why));
  return kExitNobody;
}

int ended_first(const CtlCommand& command) {
  return nobody(fmt::format("{}: the VM ended before it answered", command.socket));
}

Result<int> follow_events(const CtlCommand& command, int fd) {
  std::string line;
  HttpResponseParser parser([&](std::string_view data) {
    for (const char c : data) {
      line += c;
      if (c == '\n') {
        std::fputs((command.json ? line : event_for_people(line)).c_str(), stdout);
        line.clear();
      }
    }
    std::fflush(stdout);
  });
  TRY(receive(fd, parser));
  if (parser.status() == 0) {
    return ended_first(command);
  }
  return parser.status() == kHttpOk ? 0 : kExitRefused;
}

}  // namespace

bool is_ctl_verb(const std::string& verb) {
  return find_verb(verb) != nullptr;
}

Result<int> run_ctl(const CtlCommand& command) {
  const manual::Verb& verb = *find_verb(command.verb);
  auto socket = connect_unix(command.socket);
  if (!socket) {
    return nobody(socket.error().message());
  }
  const std::string body =
      command.timeout.empty() ? "" : fmt::format("{{\"timeout\": \"{}\"}}", command.timeout);
  const std::string request =
      http_request(verb.method, fmt::format("/vireo/{}", verb.name), "application/json", body);
  if (Result<> sent = send_all(socket->get(), request); !sent) {
    return nobody(fmt::format("{}: {}", command.socket, sent.error().message()));
  }
  if (verb.name == "events") {
    return follow_events(command, socket->get());
  }
  std::string answer;
  HttpResponseParser parser([&answer](std::string_view data) { answer += data; });
  TRY_ASSIGN(const bool whole, receive(socket->get(), parser));
  if (!whole && !(verb.ends_vm && answer.empty())) {
    return ended_first(command);
  }
  if (whole && parser.status() != kHttpOk) {
    tell(fmt::format("{}: {}", command.verb, refusal_text(answer)));
    return kExitRefused;
  }
  if (verb.ends_vm) {
    wait_for_end(socket->get());
  } else if (command.json) {
    std::fputs(answer.c_str(), stdout);
  } else if (verb.method == "GET") {
    std::fputs(answer_for_people(verb.name, answer).c_str(), stdout);
  }
  return 0;
}

}  // namespace vireo
