// SPDX-License-Identifier: Apache-2.0
#include "src/ctl.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <span>
#include <string_view>

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "devices/block/disk_file.h"
#include "devices/block/overlay_file.h"
#include "src/base/ancillary_file.h"
#include "src/base/colour.h"
#include "src/base/unix_socket.h"
#include "src/base/unpublished_file.h"
#include "src/config_value.h"
#include "src/ctl_print.h"
#include "src/http.h"
#include "src/manual/verbs.h"
#include "src/option_words.h"
#include "src/snapshot/snapshot_file.h"
#include "src/uuid.h"

namespace vireo {

namespace {

constexpr int kExitRefused = 1;
constexpr int kExitNobody = 69;
constexpr unsigned kHttpOk = 200;
/// It has all that the guest knows.
constexpr mode_t kSnapshotMode = 0600;

const manual::Verb* find_verb(std::string_view name) {
  const auto* const found = std::ranges::find(manual::kVerbs, name, &manual::Verb::name);
  return found == manual::kVerbs.end() ? nullptr : found;
}

/// Sends all of `text`, with `file` beside it where there is one.
Result<> send_all(int fd, std::string_view text, const UniqueFd& file) {
  std::string bytes(text);
  iovec piece = {.iov_base = bytes.data(), .iov_len = bytes.size()};
  msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
  AncillaryFile ancillary;
  if (file) {
    ancillary.send_with(message, file.get());
  }
  const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL);
  if (sent < 0) {
    return fail_errno(errno, "sendmsg");
  }
  return write_full(fd, std::as_bytes(std::span(text)).subspan(static_cast<std::size_t>(sent)));
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

// drive
// ------------------------------------------------------------------------------------------

using Json = nlohmann::ordered_json;

/// The body of the request: words become what they are in a configuration's table.
Json drive_body(const CtlCommand& command) {
  Json body = {{"id", command.argument}};
  if (command.settings.empty()) {
    return body;
  }
  for (const OptionWord& word : split_option_words(command.settings)) {
    std::string pointer = "/" + word.key;
    std::ranges::replace(pointer, '.', '/');
    const bool none = word.value == "none" && word.key.starts_with("rate_limit");
    body[Json::json_pointer(pointer)] = none         ? Json(nullptr)
                                        : word.value ? Json(*word.value)
                                                     : Json(true);
  }
  return body;
}

/// How the VM has the disk open, and so wants a new one.
DiskFileOptions options_of(const std::string& config, const std::string& id) {
  const Json json = Json::parse(config, nullptr, false);
  const Json disks = json.is_object() && json.contains("config") && json["config"].contains("disk")
                         ? json["config"]["disk"]
                         : Json::array();
  for (const Json& disk : disks) {
    if (disk.value("id", "") == id) {
      return {.writable = !disk.value("readonly", false), .direct = disk.value("direct", false)};
    }
  }
  return {};  // the VM will say that there is none
}

/// Opens the file that the body names, and names it so that the VM's directory does not matter.
Result<UniqueFd> open_new_file(const CtlCommand& command, Json& body) {
  std::string config;
  TRY_ASSIGN(const UniqueFd socket, connect_unix(command.socket));
  TRY(send_all(socket.get(), http_request("GET", "/vireo/config", "application/json", ""), {}));
  HttpResponseParser parser([&config](std::string_view data) { config += data; });
  TRY(receive(socket.get(), parser));
  const std::string path = body["path"].get<std::string>();
  TRY_ASSIGN(UniqueFd file, open_image_file(path, options_of(config, command.argument)));
  body["path"] = absolute_path(path);
  return file;
}

// snapshot
// ---------------------------------------------------------------------------------------

/// The VM stands still until its file has its name: where this process ends before that, nothing
/// is lost.
Result<Json> snapshot_body(const CtlCommand& command) {
  Json body = {{"then", command.then == "stop" ? "pause" : command.then}};
  if (!command.disks.empty() || command.then == "stop") {
    body["disks"] = command.disks.empty() ? "none" : command.disks;
  }
  if (command.diff) {
    body["diff"] = true;
  }
  if (!command.parent.empty()) {
    TRY_ASSIGN(const UniqueFd file, open_file(command.parent, O_RDONLY));
    auto parent = SnapshotFile::read(file.get());
    if (!parent) {
      return std::unexpected(std::move(parent).error().context(command.parent));
    }
    body["parent"] = uuid_text(parent->facts().uuid);
  }
  return body;
}

/// The answer that the VM gives to a request of its own connection; false where it refused.
Result<bool> ask(const CtlCommand& command, std::string_view verb, const UniqueFd& socket) {
  TRY(send_all(socket.get(),
               http_request("POST", fmt::format("/vireo/{}", verb), "application/json", ""), {}));
  std::string answer;
  HttpResponseParser parser([&answer](std::string_view data) { answer += data; });
  TRY_ASSIGN(const bool whole, receive(socket.get(), parser));
  if (whole && parser.status() != kHttpOk) {
    tell(fmt::format("{}: {}", command.verb, refusal_text(answer)));
    return false;
  }
  return true;
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
  std::string body;
  UniqueFd file;
  std::optional<UnpublishedFile> snapshot;
  if (verb.name == "snapshot") {
    TRY_ASSIGN(snapshot, UnpublishedFile::create(command.argument, kSnapshotMode));
    file = UniqueFd(::fcntl(snapshot->fd(), F_DUPFD_CLOEXEC, 0));
    TRY_ASSIGN(const Json wanted, snapshot_body(command));
    body = wanted.dump();
  } else if (!command.timeout.empty()) {
    body = Json{{"timeout", command.timeout}}.dump();
  } else if (verb.name == "drive") {
    Json json;
    try {
      json = drive_body(command);
    } catch (const Json::exception&) {
      return fail(ErrorCode::kUsage, fmt::format("drive: {}: wants KEY=VALUE, separated by commas",
                                                 vireo::quoted(command.settings)));
    }
    if (json.contains("path") && json["path"].is_string()) {
      TRY_ASSIGN(file, open_new_file(command, json));
    }
    body = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  const std::string request =
      http_request(verb.method, fmt::format("/vireo/{}", verb.name), "application/json", body);
  if (Result<> sent = send_all(socket->get(), request, file); !sent) {
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
  if (snapshot) {
    TRY(snapshot->replace());
    if (command.then == "stop") {
      TRY_ASSIGN(const bool stops, ask(command, "kill", *socket));
      if (!stops) {
        return kExitRefused;
      }
      wait_for_end(socket->get());
    }
  }
  if (verb.ends_vm) {
    wait_for_end(socket->get());
  } else if (command.json) {
    std::fputs(answer.c_str(), stdout);
  } else if (verb.method == "GET" || verb.name == "drive" || snapshot) {
    std::fputs(answer_for_people(verb.name, answer).c_str(), stdout);
  }
  return 0;
}

}  // namespace vireo
