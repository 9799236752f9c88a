// SPDX-License-Identifier: Apache-2.0
#include "src/control_verbs.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <unistd.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/base/log.h"
#include "src/drive.h"
#include "src/exit_report.h"
#include "src/manual/verbs.h"
#include "src/snapshot_verb.h"

namespace vireo {

namespace {

using Json = nlohmann::ordered_json;
using Done = std::function<void(ControlReply)>;

ControlReply ok(const Json& json) {
  return {.body = json.dump() + "\n"};
}

Json state_json(const Machine& machine) {
  return {{"version", 1}, {"state", name_of(machine.state())}};
}

/// The body's object; nullopt where it is none, or has another key than `allowed`.
std::optional<Json> body_object(const HttpRequest& request, std::string_view allowed = {}) {
  if (request.body.empty()) {
    return Json::object();
  }
  Json json = Json::parse(request.body, nullptr, false);
  if (!json.is_object()) {
    return std::nullopt;
  }
  for (const auto& [key, value] : json.items()) {
    if (key != allowed) {
      return std::nullopt;
    }
  }
  return json;
}

// What shows something
// -------------------------------------------------------------------------------

void status(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  const Config& config = machine.config();
  done(ok({{"version", 1},
           {"name", config.name},
           {"namespace", config.namespace_label},
           {"labels", config.labels},
           {"state", name_of(machine.state())},
           {"ready", machine.ready()},
           {"pid", ::getpid()},
           {"uptime_us", (monotonic_ns() - machine.timeline().start_ns()) / 1000},
           {"restarts", machine.restarts()},
           {"cpus", config.machine.cpus},
           {"memory_bytes", config.machine.memory_bytes}}));
}

void config(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  const Json json = {{"version", 1}, {"config", Json::parse(to_json(machine.config()))}};
  done(ok(json));
}

void stats(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  DeviceSet& devices = machine.devices();
  auto vcpus = vcpus_json(machine.vcpus(), devices.ports(), devices.mmio());
  auto kvm = counters_json(machine.kvm_stats());
  if (!vcpus || !kvm) {
    done(control_error(500, (vcpus ? kvm.error() : vcpus.error()).message()));
    return;
  }
  done(ok({{"version", 1}, {"vcpus", std::move(*vcpus)}, {"kvm", std::move(*kvm)}}));
}

void metrics(Machine& machine, HttpRequest& request, const Done& done) {
  const std::string& name = machine.config().name;
  if (request.accept.find("openmetrics") != std::string::npos ||
      request.accept.find("text/plain") != std::string::npos) {
    done({.body = metrics_text(name, machine.metrics()), .content_type = kOpenMetricsType});
  } else {
    done({.body = metrics_json(name, machine.metrics())});
  }
}

void events(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  done({.body = machine.events().line(name_of(machine.state()), "the state as you came"),
        .content_type = "application/x-ndjson",
        .stream = true});
}

// What does something
// --------------------------------------------------------------------------------

void pause(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  if (machine.state() == MachineState::kStopping) {
    done(control_error(409, "the VM is stopping"));
    return;
  }
  machine.pause([&machine, done] { done(ok(state_json(machine))); });
}

void resume(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  if (machine.resume()) {
    done(ok(state_json(machine)));
  } else {
    done(control_error(409,
                       fmt::format("the VM is not paused: it is {}", name_of(machine.state()))));
  }
}

void stop(Machine& machine, HttpRequest& request, const Done& done) {
  const std::optional<Json> body = body_object(request, "timeout");
  std::uint64_t timeout_ns = Machine::kStopTimeoutNs;
  bool valid = body.has_value();
  if (valid && body->contains("timeout")) {
    const Json& value = body->at("timeout");
    const auto parsed = value.is_string() ? parse_duration(value.get<std::string>()) : std::nullopt;
    valid = parsed.has_value();
    timeout_ns = parsed.value_or(0);
  }
  if (!valid) {
    done(control_error(400, "wants no body, or {\"timeout\": \"10s\"}"));
    return;
  }
  machine.stop(timeout_ns);
  done(ok(state_json(machine)));
}

void kill(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  machine.kill();
  done(ok({{"version", 1}, {"state", "stopping"}}));
}

void ctrl_alt_del(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  if (machine.send_ctrl_alt_del()) {
    done(ok(state_json(machine)));
  } else {
    done(control_error(409, "the guest has not enabled its keyboard"));
  }
}

void nmi(Machine& machine, HttpRequest& /*request*/, const Done& done) {
  if (const Result<> sent = machine.inject_nmi(); !sent) {
    done(control_error(500, sent.error().message()));
  } else {
    done(ok(state_json(machine)));
  }
}

void drive(Machine& machine, HttpRequest& request, const Done& done) {
  UniqueFd file = request.files.empty() ? UniqueFd() : std::move(request.files.back());
  Result<> begun =
      change_drive(machine, request.body, std::move(file), [done](const Result<DriveState>& state) {
        done(state ? ok({{"version", 1},
                         {"id", state->id},
                         {"path", state->path},
                         {"size_bytes", state->bytes}})
                   : control_error(500, state.error().message()));
      });
  if (!begun) {
    done(control_error(400, begun.error().message()));
  }
}

void snapshot(Machine& machine, HttpRequest& request, const Done& done) {
  Result<> begun = save_machine_into(
      machine, request.body, std::move(request.files),
      [done](const Result<SnapshotReport>& report) {
        done(report ? ok(snapshot_json(*report)) : control_error(500, report.error().message()));
      });
  if (!begun) {
    done(control_error(400, begun.error().message()));
  }
}

void load(Machine& machine, HttpRequest& request, const Done& done) {
  const std::optional<Json> body = body_object(request, "path");
  const bool named = body && body->contains("path");
  if (!body || (named && !body->at("path").is_string()) || named == request.files.empty()) {
    done(control_error(400,
                       "wants {\"path\": \"/where/it/is.vsnap\"} with that file beside the "
                       "request (SCM_RIGHTS), as vireo ctl sends it, or neither"));
    return;
  }
  Result<> begun = machine.load(
      named ? body->at("path").get<std::string>() : std::string(),
      named ? std::move(request.files.back()) : UniqueFd(),
      [&machine, done](const Result<>& loaded) {
        done(loaded ? ok(state_json(machine)) : control_error(500, loaded.error().message()));
      });
  if (!begun) {
    done(control_error(400, begun.error().message()));
  }
}

struct Answer {
  std::string_view verb;
  void (*give)(Machine&, HttpRequest&, const Done&);
};
constexpr auto kAnswers = std::to_array<Answer>({
    {"status", status},
    {"config", config},
    {"stats", stats},
    {"metrics", metrics},
    {"events", events},
    {"pause", pause},
    {"resume", resume},
    {"stop", stop},
    {"kill", kill},
    {"ctrl-alt-del", ctrl_alt_del},
    {"nmi", nmi},
    {"drive", drive},
    {"snapshot", snapshot},
    {"load", load},
});
static_assert(std::ranges::equal(kAnswers, manual::kVerbs, {}, &Answer::verb, &manual::Verb::name),
              "each verb has its answer, in the order of src/manual/verbs.h");

/// "status, config, …"
std::string verb_names() {
  std::string names;
  for (const manual::Verb& verb : manual::kVerbs) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", verb.name);
  }
  return names;
}

}  // namespace

ControlReply control_error(unsigned status, std::string_view what) {
  const Json json = {{"version", 1}, {"error", what}};
  return {.status = status,
          .body = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"};
}

void answer_control(Machine& machine, HttpRequest& request, const Done& done) {
  constexpr std::string_view kPrefix = "/vireo/";
  const std::string_view path = request.path;
  const auto* const verb = std::ranges::find(
      manual::kVerbs, path.substr(std::min(kPrefix.size(), path.size())), &manual::Verb::name);
  if (!path.starts_with(kPrefix) || verb == manual::kVerbs.end()) {
    done(control_error(404, fmt::format("no such path; verbs are /vireo/{}", verb_names())));
    return;
  }
  if (request.method != verb->method) {
    ControlReply reply = control_error(405, fmt::format("wants {}", verb->method));
    reply.allow = verb->method;
    done(std::move(reply));
    return;
  }
  if (machine.state() == MachineState::kStandby && !verb->in_standby) {
    done(control_error(409, "the VM stands by; it wants its snapshot first (load)"));
    return;
  }
  const std::optional<Json> body = verb->takes_body ? Json::object() : body_object(request);
  if (!body) {
    done(control_error(400, "this verb takes no body"));
    return;
  }
  kAnswers.at(static_cast<std::size_t>(verb - manual::kVerbs.begin())).give(machine, request, done);
}

}  // namespace vireo
