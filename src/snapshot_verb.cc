// SPDX-License-Identifier: Apache-2.0
#include "src/snapshot_verb.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include <fcntl.h>

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "src/config_value.h"
#include "src/uuid.h"

namespace vireo {

namespace {

using Json = nlohmann::ordered_json;

constexpr auto kSettings = std::to_array<std::string_view>(
    {"then", "disks", "disk_files", "diff", "parent", "rounds", "left", "over"});
constexpr unsigned kRoundsMax = 1000;

std::unexpected<Error> wrong(const std::string& what) {
  return fail(ErrorCode::kConfig, what);
}

/// One of `words`, or the first where the request has no such key.
Result<std::string> word_of(const Json& json, const char* key,
                            std::initializer_list<std::string_view> words) {
  if (!json.contains(key)) {
    return std::string(*words.begin());
  }
  const std::string text = json[key].is_string() ? json[key].get<std::string>() : json[key].dump();
  if (std::ranges::find(words, text) == words.end()) {
    std::string all;
    for (const std::string_view word : words) {
      all += fmt::format("{}{}", all.empty() ? "" : ", ", word);
    }
    return wrong(fmt::format("{}: {}: wants one of {}", key, vireo::quoted(text), all));
  }
  return text;
}

Result<UniqueFd> snapshot_file(std::vector<UniqueFd>& files) {
  if (files.empty()) {
    return wrong(
        "wants an empty file, open for writing, beside the request (SCM_RIGHTS), as vireo "
        "ctl sends it");
  }
  UniqueFd file = std::move(files.front());
  files.erase(files.begin());
  TRY_ASSIGN(const std::uint64_t size, regular_file_size(file.get()));
  if (size != 0 || (::fcntl(file.get(), F_GETFL) & O_ACCMODE) == O_RDONLY) {
    return wrong("the file beside the request is not empty, or not open for writing");
  }
  return file;
}

/// What a diff shall be one to; nothing where that is not said.
Result<std::optional<Uuid>> parent_of(const Json& json) {
  if (json.contains("diff") && !json["diff"].is_boolean()) {
    return wrong("diff: wants true or false");
  }
  if (!json.contains("parent")) {
    return std::optional<Uuid>();
  }
  const Json& text = json["parent"];
  const auto uuid = text.is_string() ? parse_uuid(text.get<std::string>()) : std::nullopt;
  if (!uuid || !json.contains("diff") || json["diff"] != true) {
    return wrong("parent: wants the UUID of a snapshot, and \"diff\": true");
  }
  return uuid;
}

/// The overlays or copies, each with its file.
Result<std::vector<CheckpointFile>> disk_files(const Json& json, std::vector<UniqueFd> files) {
  const Json entries = json.value("disk_files", Json::array());
  if (!entries.is_array() || entries.size() != files.size()) {
    return wrong(
        "disk_files: wants a list with an entry for each file beside the request but the "
        "first, which is the snapshot's");
  }
  std::vector<CheckpointFile> all;
  for (UniqueFd& file : files) {
    const Json& entry = entries[all.size()];
    const auto text = [&entry](const char* key) {
      return entry.is_object() && entry.contains(key) && entry[key].is_string()
                 ? entry[key].get<std::string>()
                 : std::string();
    };
    CheckpointFile one = {.id = text("id"), .path = text("path"), .file = std::move(file)};
    if (one.id.empty() || !one.path.starts_with('/')) {
      return wrong(R"(disk_files: wants {"id": "data", "path": "/where/it/is"} of each file)");
    }
    all.push_back(std::move(one));
  }
  return all;
}

/// How long the guest may be in the way of its own snapshot.
Result<SnapshotJob::PrecopyLimits> limits_of(const Json& json) {
  using Over = SnapshotJob::PrecopyLimits::Over;
  SnapshotJob::PrecopyLimits limits;
  if (json.contains("rounds")) {
    const Json& rounds = json["rounds"];
    if (!rounds.is_number_unsigned() || rounds < 1U || rounds > kRoundsMax) {
      return wrong(
          fmt::format("rounds: {}: wants a whole number from 1 to {}", rounds.dump(), kRoundsMax));
    }
    limits.rounds = rounds.get<unsigned>();
  }
  if (json.contains("left")) {
    const Json& left = json["left"];
    const auto bytes = left.is_string() ? parse_size(left.get<std::string>()) : std::nullopt;
    if (!bytes) {
      return wrong(fmt::format("left: {}: wants a size such as \"4M\"", left.dump()));
    }
    limits.bytes = *bytes;
  }
  TRY_ASSIGN(const std::string over, word_of(json, "over", {"pause", "wait", "refuse"}));
  limits.over = over == "wait" ? Over::kWait : over == "refuse" ? Over::kRefuse : Over::kPause;
  return limits;
}

bool writes_disks(const Config& config) {
  return !config.volumes.empty() ||
         std::ranges::any_of(config.disks, [](const DiskConfig& disk) { return !disk.readonly; });
}

}  // namespace

Result<> save_machine_into(Machine& machine, const std::string& body, std::vector<UniqueFd> files,
                           SnapshotDone done) {
  const Json json = body.empty() ? Json::object() : Json::parse(body, nullptr, false);
  if (!json.is_object()) {
    return wrong(R"(wants {"then": "resume", "disks": "none"}, or no body)");
  }
  for (const auto& [key, value] : json.items()) {
    if (std::ranges::find(kSettings, key) == kSettings.end()) {
      return wrong(fmt::format("{}: no setting of a snapshot; it has {}", vireo::quoted(key),
                               fmt::join(kSettings, ", ")));
    }
  }
  TRY_ASSIGN(const std::string then, word_of(json, "then", {"resume", "pause", "stop"}));
  TRY_ASSIGN(const std::string disks, word_of(json, "disks", {"", "none", "freeze", "reflink"}));
  const bool resumes = then == "resume" && machine.state() == MachineState::kRunning;
  if (resumes && disks.empty() && writes_disks(machine.config())) {
    return wrong(
        "disks: missing: the VM goes on to write its disks, which the snapshot needs as they are; "
        "wants \"freeze\" (they are only read from then on, and the VM writes to overlays), "
        "\"reflink\" (they are copied), \"none\" (they are seen to elsewhere), or \"then\": "
        "\"stop\"");
  }
  TRY_ASSIGN(const std::optional<Uuid> parent, parent_of(json));
  TRY_ASSIGN(const SnapshotJob::PrecopyLimits limits, limits_of(json));
  TRY_ASSIGN(UniqueFd file, snapshot_file(files));
  TRY_ASSIGN(std::vector<CheckpointFile> of_disks, disk_files(json, std::move(files)));
  return machine.snapshot({.file = std::move(file),
                           .then = then == "resume"  ? AfterSnapshot::kResume
                                   : then == "pause" ? AfterSnapshot::kPause
                                                     : AfterSnapshot::kStop,
                           .diff = json.contains("diff") && json["diff"] == true,
                           .parent = parent,
                           .limits = limits,
                           .disks = disks == "freeze"    ? DisksAtSnapshot::kFreeze
                                    : disks == "reflink" ? DisksAtSnapshot::kReflink
                                                         : DisksAtSnapshot::kNone,
                           .disk_files = std::move(of_disks)},
                          std::move(done));
}

Json snapshot_json(const SnapshotReport& report) {
  return {{"version", 1},
          {"uuid", uuid_text(report.uuid)},
          {"data_bytes", report.data_bytes},
          {"pause_us", report.pause_ns / 1000}};
}

}  // namespace vireo
