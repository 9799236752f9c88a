// SPDX-License-Identifier: Apache-2.0
#include "src/ctl.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string_view>
#include <vector>

#include <fcntl.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "devices/block/disk_file.h"
#include "devices/block/overlay_file.h"
#include "src/base/colour.h"
#include "src/base/unix_socket.h"
#include "src/config_value.h"
#include "src/ctl_client.h"
#include "src/ctl_print.h"
#include "src/ctl_snapshot.h"
#include "src/http.h"
#include "src/manual/verbs.h"
#include "src/option_words.h"

namespace vireo {

namespace {

constexpr int kExitRefused = 1;
constexpr int kExitNobody = 69;

const manual::Verb* find_verb(std::string_view name) {
  const auto* const found = std::ranges::find(manual::kVerbs, name, &manual::Verb::name);
  return found == manual::kVerbs.end() ? nullptr : found;
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
DiskFileOptions options_of(const Json& disks, const std::string& id) {
  for (const Json& disk : disks) {
    if (disk.value("id", "") == id) {
      return {.writable = !disk.value("readonly", false), .direct = disk.value("direct", false)};
    }
  }
  return {};  // the VM will say that there is none
}

/// Opens the file that the body names, and names it so that the VM's directory does not matter.
Result<UniqueFd> open_new_file(const CtlCommand& command, Json& body) {
  TRY_ASSIGN(const Json disks, ask_tables(command.socket, "disk"));
  const std::string path = body["path"].get<std::string>();
  TRY_ASSIGN(UniqueFd file, open_image_file(path, options_of(disks, command.argument)));
  body["path"] = absolute_path(path);
  return file;
}

// The request
// ------------------------------------------------------------------------------------

/// What is sent, and what it needs until the answer is there.
struct Request {
  std::string body;
  UniqueFd file;
  std::optional<CtlSnapshot> snapshot;

  std::vector<int> files() const {
    return snapshot ? snapshot->files() : file ? std::vector{file.get()} : std::vector<int>();
  }
};

Result<Request> request_of(const CtlCommand& command) {
  Request request;
  if (command.verb == "snapshot") {
    TRY_ASSIGN(request.snapshot, CtlSnapshot::create(command));
    request.body = request.snapshot->body();
  } else if (command.verb == "load" && !command.argument.empty()) {
    TRY_ASSIGN(request.file, open_file(command.argument, O_RDONLY));
    request.body = Json{{"path", absolute_path(command.argument)}}.dump(
        -1, ' ', false, Json::error_handler_t::replace);
  } else if (!command.timeout.empty()) {
    request.body = Json{{"timeout", command.timeout}}.dump();
  } else if (command.verb == "drive") {
    Json json;
    try {
      json = drive_body(command);
    } catch (const Json::exception&) {
      return fail(ErrorCode::kUsage, fmt::format("drive: {}: wants KEY=VALUE, separated by commas",
                                                 vireo::quoted(command.settings)));
    }
    if (json.contains("path") && json["path"].is_string()) {
      TRY_ASSIGN(request.file, open_new_file(command, json));
    }
    request.body = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  return request;
}

int refused(const CtlCommand& command, const CtlAnswer& answer) {
  tell(fmt::format("{}: {}", command.verb, refusal_text(answer.body)));
  return kExitRefused;
}

/// The exit status of a snapshot that the VM has written.
Result<int> end_snapshot(const CtlCommand& command, CtlSnapshot& snapshot, int socket) {
  TRY(snapshot.publish());
  if (command.then == "stop") {
    TRY_ASSIGN(const CtlAnswer killed, ask(socket, "POST", "kill", ""));
    if (killed.whole && !killed.ok()) {
      return refused(command, killed);
    }
    wait_for_end(socket);
    snapshot.on_end();
  }
  return 0;
}

}  // namespace

bool is_ctl_verb(const std::string& verb) {
  return find_verb(verb) != nullptr;
}

Result<> check_ctl_command(CtlCommand& ctl) {
  const bool snapshot = ctl.verb == "snapshot";
  if (ctl.verb == "drive" && ctl.argument.empty()) {
    return fail(ErrorCode::kUsage, "drive: wants the id of a disk (see vireo ctl SOCKET config)");
  }
  if (snapshot && ctl.argument.empty()) {
    return fail(ErrorCode::kUsage, "snapshot: wants the file that it becomes, such as web.vsnap");
  }
  if (ctl.verb != "drive" && ctl.verb != "load" && !snapshot && !ctl.argument.empty()) {
    return fail(ErrorCode::kUsage, fmt::format("{}: the verb {} takes no argument",
                                               vireo::quoted(ctl.argument), ctl.verb));
  }
  if (ctl.verb != "drive" && !ctl.settings.empty()) {
    return fail(ErrorCode::kUsage, fmt::format("{}: the verb {} takes no settings",
                                               vireo::quoted(ctl.settings), ctl.verb));
  }
  for (const auto& [option, given] : {std::pair("--then", !ctl.then.empty()),
                                      {"--disks", !ctl.disks.empty()},
                                      {"--disk-files", !ctl.disk_files.empty()},
                                      {"--rounds", !ctl.rounds.empty()},
                                      {"--left", !ctl.left.empty()},
                                      {"--over", !ctl.over.empty()},
                                      {"--diff", ctl.diff},
                                      {"--seal", ctl.seal},
                                      {"--parent", !ctl.parent.empty()}}) {
    if (!snapshot && given) {
      return fail(ErrorCode::kUsage, fmt::format("{}: only the verb snapshot takes it", option));
    }
  }
  if (!ctl.parent.empty() && !ctl.diff) {
    return fail(ErrorCode::kUsage, "--parent: wants --diff, which is one to it");
  }
  ctl.then = ctl.then.empty() ? "resume" : ctl.then;
  if (ctl.then != "resume" && ctl.then != "stop") {
    return fail(ErrorCode::kUsage,
                fmt::format("--then: {}: wants resume or stop", vireo::quoted(ctl.then)));
  }
  if (!ctl.disks.empty() && ctl.disks != "none" && ctl.disks != "freeze" &&
      ctl.disks != "reflink") {
    return fail(ErrorCode::kUsage, fmt::format("--disks: {}: wants freeze, reflink or none",
                                               vireo::quoted(ctl.disks)));
  }
  if (!ctl.disk_files.empty() && (ctl.disks.empty() || ctl.disks == "none")) {
    return fail(ErrorCode::kUsage, "--disk-files: wants --disks freeze or --disks reflink");
  }
  return {};
}

Result<int> run_ctl(const CtlCommand& command) {
  const manual::Verb& verb = *find_verb(command.verb);
  auto socket = connect_unix(command.socket);
  if (!socket) {
    return nobody(socket.error().message());
  }
  TRY_ASSIGN(Request request, request_of(command));
  if (verb.name == "events") {
    TRY(send_all(socket->get(),
                 http_request(verb.method, "/vireo/events", "application/json", "")));
    return follow_events(command, socket->get());
  }
  auto asked = ask(socket->get(), verb.method, verb.name, request.body, request.files());
  if (!asked) {
    return nobody(fmt::format("{}: {}", command.socket, asked.error().message()));
  }
  const CtlAnswer& answer = *asked;
  if (!answer.whole && !(verb.ends_vm && answer.body.empty())) {
    return ended_first(command);
  }
  if (answer.whole && !answer.ok()) {
    if (request.snapshot) {
      request.snapshot->on_refusal();
    }
    return refused(command, answer);
  }
  if (request.snapshot) {
    TRY_ASSIGN(const int status, end_snapshot(command, *request.snapshot, socket->get()));
    if (status != 0) {
      return status;
    }
  }
  if (verb.ends_vm) {
    wait_for_end(socket->get());
  } else if (command.json) {
    std::fputs(answer.body.c_str(), stdout);
  } else if (verb.method == "GET" || verb.name == "drive" || request.snapshot) {
    std::fputs(answer_for_people(verb.name, answer.body).c_str(), stdout);
  }
  return 0;
}

}  // namespace vireo
