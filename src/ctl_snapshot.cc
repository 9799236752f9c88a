// SPDX-License-Identifier: Apache-2.0
#include "src/ctl_snapshot.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/config_value.h"
#include "src/ctl_client.h"
#include "src/option_words.h"
#include "src/seal.h"
#include "src/snapshot/snapshot_file.h"
#include "src/uuid.h"

namespace vireo {

namespace {

using Json = nlohmann::ordered_json;

/// It has all that the guest knows.
constexpr mode_t kSnapshotMode = 0600;
constexpr mode_t kDiskMode = 0644;

Result<std::vector<std::string>> written_disks(const CtlCommand& command) {
  TRY_ASSIGN(const Json disks, ask_tables(command.socket, "disk"));
  TRY_ASSIGN(const Json volumes, ask_tables(command.socket, "volume"));
  std::vector<std::string> ids;
  for (const Json& disk : disks) {
    if (!disk.value("readonly", false)) {
      ids.push_back(disk.value("id", ""));
    }
  }
  for (const Json& volume : volumes) {
    ids.push_back(volume.value("id", ""));
  }
  return ids;
}

std::optional<unsigned> parse_whole(const std::string& text) {
  unsigned number = 0;
  const char* const end = text.data() + text.size();
  const auto [last, error] = std::from_chars(text.data(), end, number);
  return error == std::errc() && last == end ? std::optional(number) : std::nullopt;
}

std::vector<OptionWord> disk_files(const CtlCommand& command) {
  return command.disk_files.empty() ? std::vector<OptionWord>()
                                    : split_option_words(command.disk_files);
}

}  // namespace

Result<CtlSnapshot> CtlSnapshot::create(const CtlCommand& command) {
  if (command.seal) {
    TRY(check_sealable(command.argument));
  }
  TRY_ASSIGN(UnpublishedFile file, UnpublishedFile::create(command.argument, kSnapshotMode));
  CtlSnapshot snapshot(command, std::move(file));
  if (!command.parent.empty()) {
    TRY_ASSIGN(const UniqueFd opened, open_file(command.parent, O_RDONLY));
    auto parent = SnapshotFile::read(opened.get());
    if (!parent) {
      return std::unexpected(std::move(parent).error().context(command.parent));
    }
    snapshot.parent_ = uuid_text(parent->facts().uuid);
  }
  if (command.disks == "freeze" || command.disks == "reflink") {
    if (Result<> added = snapshot.add_disks(); !added) {
      snapshot.remove_disk_files();
      return std::unexpected(std::move(added).error());
    }
  }
  return snapshot;
}

Result<> CtlSnapshot::add_disks() {
  TRY_ASSIGN(const std::vector<std::string> ids, written_disks(*command_));
  for (const OptionWord& word : disk_files(*command_)) {
    if (!word.value || std::ranges::find(ids, word.key) == ids.end()) {
      return fail(ErrorCode::kUsage, fmt::format("--disk-files: {}: {}", vireo::quoted(word.key),
                                                 word.value ? "no disk that the VM writes"
                                                            : "wants ID=PATH of each disk"));
    }
  }
  for (const std::string& id : ids) {
    TRY(add_disk(id));
  }
  return {};
}

Result<> CtlSnapshot::add_disk(const std::string& id) {
  std::filesystem::path path = command_->argument;
  path.replace_extension(
      fmt::format("{}.{}", id, command_->disks == "freeze" ? "overlay" : "disk"));
  for (const OptionWord& word : disk_files(*command_)) {
    if (word.key == id) {
      path = *word.value;
    }
  }
  const std::string absolute = std::filesystem::absolute(path);
  TRY_ASSIGN(UnpublishedFile file, UnpublishedFile::create(absolute, kDiskMode));
  // It is the VM's as soon as that writes to it, whatever becomes of this process.
  TRY_ASSIGN(const bool published, file.publish());
  if (!published) {
    return fail(ErrorCode::kSystem,
                fmt::format("disk {}: there is a file {} already; wants another name (--disk-files "
                            "{}=PATH)",
                            vireo::quoted(id), absolute, id));
  }
  disks_.push_back({.id = id, .path = absolute, .file = std::move(file)});
  return {};
}

std::string CtlSnapshot::body() const {
  // The VM stands still until its file has its name: where this process ends before that, nothing
  // is lost.
  Json body = {{"then", command_->then == "stop" ? "pause" : command_->then}};
  if (!command_->disks.empty() || command_->then == "stop") {
    body["disks"] = command_->disks.empty() ? "none" : command_->disks;
  }
  for (const DiskFile& disk : disks_) {
    body["disk_files"].push_back({{"id", disk.id}, {"path", disk.path}});
  }
  if (!command_->rounds.empty()) {
    const std::optional<unsigned> rounds = parse_whole(command_->rounds);
    body["rounds"] = rounds ? Json(*rounds) : Json(command_->rounds);
  }
  for (const auto& [key, text] : {std::pair("left", &command_->left), {"over", &command_->over}}) {
    if (!text->empty()) {
      body[key] = *text;
    }
  }
  if (command_->diff) {
    body["diff"] = true;
  }
  if (!parent_.empty()) {
    body["parent"] = parent_;
  }
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<int> CtlSnapshot::files() const {
  std::vector<int> files = {file_.fd()};
  for (const DiskFile& disk : disks_) {
    files.push_back(disk.file.fd());
  }
  return files;
}

Result<> CtlSnapshot::publish() {
  TRY(file_.replace());
  if (!command_->seal) {
    return {};
  }
  file_.close();  // the VM has done so before it answered
  return seal_file(command_->argument);
}

void CtlSnapshot::on_refusal() const {
  if (disks_.empty()) {
    return;
  }
  // The snapshot may have failed when the VM had gone on upon its overlays already.
  const Result<Json> used = ask_tables(command_->socket, "disk");
  if (!used || used->is_null()) {
    return;  // it may have ended upon them
  }
  for (const DiskFile& disk : disks_) {
    const bool in_use = std::ranges::any_of(
        *used, [&disk](const Json& table) { return table.value("overlay", "") == disk.path; });
    if (!in_use) {
      ::unlink(disk.path.c_str());
    }
  }
}

void CtlSnapshot::on_end() const {
  if (command_->disks == "freeze") {
    remove_disk_files();
  }
}

void CtlSnapshot::remove_disk_files() const {
  for (const DiskFile& disk : disks_) {
    ::unlink(disk.path.c_str());
  }
}

}  // namespace vireo
