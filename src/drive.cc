// SPDX-License-Identifier: Apache-2.0
#include "src/drive.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "devices/block/raw_disk.h"
#include "src/base/log.h"
#include "src/config_keys.h"
#include "src/config_rate_limit.h"

namespace vireo {

namespace {

using Json = nlohmann::ordered_json;

std::unexpected<Error> wrong(const std::string& what) {
  return fail(ErrorCode::kConfig, what);
}

/// What a request wants, read with the keys of a [[disk]].
class DriveRequest {
 public:
  explicit DriveRequest(const DiskConfig& disk) { scratch_.disks = {disk}; }

  Result<> read(const Json& json, const std::string& prefix = {}) {
    for (const auto& [name, value] : json.items()) {
      const std::string key = prefix + name;
      if (key == "id") {
        continue;
      }
      if (value.is_object() && is_config_table("disk." + key)) {
        TRY(begin_table(key));
        TRY(read(value, key + "."));
      } else if (value.is_null() && key == kLimit) {
        limited_ = true;
        limit() = {};
      } else if (value.is_null() && key.starts_with(kLimit)) {
        TRY(begin_table(key));
      } else {
        TRY(set(key, value));
      }
    }
    return prefix.empty() && limited_ ? validate_rate_limit(limit(), kLimit) : Result<>();
  }

  const std::optional<std::uint64_t>& bytes() const { return bytes_; }
  bool has_path() const { return has_path_; }
  const std::string& path() const { return scratch_.disks.front().path; }
  std::optional<RateLimitConfig> rate_limit() {
    return limited_ ? std::optional(limit()) : std::nullopt;
  }

 private:
  static constexpr std::string_view kLimit = "rate_limit";

  RateLimitConfig& limit() { return scratch_.disks.front().rate_limit; }

  /// A bucket that is given is given anew.
  Result<> begin_table(const std::string& key) {
    limited_ = true;
    if (key == "rate_limit.bandwidth") {
      limit().bandwidth.reset();
    } else if (key == "rate_limit.ops") {
      limit().ops.reset();
    } else if (key != kLimit) {
      return wrong(unknown_key("disk." + key, "disk."));
    }
    return {};
  }

  Result<> set(const std::string& key, const Json& json) {
    const ConfigValue value(content_of(json), key, ErrorCode::kConfig);
    if (key == "size") {
      TRY_ASSIGN(bytes_, value.size());
      return {};
    }
    const ConfigKey* const found = find_config_key("disk." + key);
    if (found == nullptr || found->set == nullptr) {
      return wrong(unknown_key("disk." + key, "disk."));
    }
    has_path_ = has_path_ || key == "path";
    if (key != "path" && !key.starts_with("rate_limit.")) {
      return wrong(key + ": stays as it is while the VM runs; wants size, path or rate_limit");
    }
    return found->set(value, scratch_);
  }

  static ConfigValue::Content content_of(const Json& json) {
    if (json.is_string()) {
      return ConfigValue::OptionText{json.get_ref<const std::string&>()};
    }
    if (json.is_boolean()) {
      return json.get<bool>();
    }
    if (json.is_number_integer()) {
      return json.get<std::int64_t>();
    }
    return ConfigValue::Other();
  }

  Config scratch_;
  std::optional<std::uint64_t> bytes_;
  bool has_path_ = false;
  bool limited_ = false;
};

/// What may be asked of the disk with this id, which need not be a [[disk]].
Result<DiskConfig> find_disk(const Config& config, const std::string& id) {
  const auto disk = std::ranges::find(config.disks, id, &DiskConfig::id);
  if (disk != config.disks.end()) {
    return *disk;
  }
  const auto volume = std::ranges::find(config.volumes, id, &VolumeConfig::id);
  if (volume != config.volumes.end()) {
    return DiskConfig{.id = id, .path = volume->path};
  }
  std::string ids;
  for (const DiskConfig& each : config.disks) {
    ids += fmt::format("{}{}", ids.empty() ? "" : ", ", each.id);
  }
  for (const VolumeConfig& each : config.volumes) {
    ids += fmt::format("{}{}", ids.empty() ? "" : ", ", each.id);
  }
  return wrong(fmt::format("{}: no disk of this VM; {}", vireo::quoted(id),
                           ids.empty() ? "it has none" : "it has " + ids));
}

Result<UniqueFd> open_by_path(const AllowedPaths& allowed, const std::string& path,
                              const DiskFileOptions& options) {
  if (!allowed.cover(path)) {
    return wrong(fmt::format(
        "path: {}: not within sandbox.allow_paths; name a directory of it there, or send the open "
        "file beside the request (SCM_RIGHTS), as vireo ctl does",
        vireo::quoted(path)));
  }
  return open_image_file(path, options, [&allowed](const std::string& name, int flags) {
    return allowed.open_file(name, flags);
  });
}

Result<std::unique_ptr<Disk>> open_new(const AllowedPaths& allowed, const DriveRequest& request,
                                       const DiskConfig& disk, UniqueFd file) {
  if (!disk.overlay.empty()) {
    return wrong("path: stays as it is for a disk with an overlay, which lies over that base only");
  }
  const DiskFileOptions options = {.writable = !disk.readonly, .direct = disk.direct};
  if (!file) {
    TRY_ASSIGN(file, open_by_path(allowed, request.path(), options));
  }
  auto adopted = adopt_disk_file(std::move(file), options);
  if (!adopted) {
    return std::unexpected(std::move(adopted).error().context(request.path()));
  }
  return std::make_unique<RawDisk>(std::move(*adopted));
}

/// Puts into the configuration what has come true.
void remember(Config& config, const DriveState& state,
              const std::optional<RateLimitConfig>& limit) {
  const auto disk = std::ranges::find(config.disks, state.id, &DiskConfig::id);
  if (disk == config.disks.end()) {
    std::ranges::find(config.volumes, state.id, &VolumeConfig::id)->size_bytes = state.bytes;
    return;
  }
  disk->path = state.path;
  disk->rate_limit = limit.value_or(disk->rate_limit);
}

}  // namespace

Result<> change_drive(Machine& machine, const std::string& body, UniqueFd file,
                      std::function<void(const Result<DriveState>&)> done) {
  const Json json = Json::parse(body, nullptr, false);
  if (!json.is_object() || !json.contains("id") || !json["id"].is_string()) {
    return wrong(R"(wants {"id": "data", "size": "20G"}, or other settings)");
  }
  const std::string id = json["id"].get<std::string>();
  TRY_ASSIGN(const DiskConfig disk, find_disk(machine.config(), id));
  const auto in_context = [&id](Error error) {
    return std::unexpected(std::move(error).context(fmt::format("disk {}", vireo::quoted(id))));
  };
  DriveRequest request(disk);
  if (Result<> read = request.read(json); !read) {
    return in_context(std::move(read).error());
  }
  const bool is_volume = std::ranges::find(machine.config().disks, id, &DiskConfig::id) ==
                         machine.config().disks.end();
  const std::optional<RateLimitConfig> limit = request.rate_limit();
  if (is_volume && (request.has_path() || limit)) {
    return in_context({ErrorCode::kConfig, "a volume takes size only; make it a disk for more"});
  }
  if (machine.saving()) {
    return wrong("a snapshot is not done yet; ask again later");
  }
  if (machine.state() == MachineState::kStopping) {
    return wrong("the VM is stopping");
  }
  BlockChange::Wanted wanted = {.bytes = request.bytes(), .rate_limit = limit};
  if (request.has_path()) {
    auto opened = open_new(machine.allowed_paths(), request, disk, std::move(file));
    if (!opened) {
      return in_context(std::move(opened).error());
    }
    wanted.disk = std::move(*opened);
  }
  auto finish = [&machine, id, path = request.path(), limit,
                 done = std::move(done)](const Result<>& result) {
    if (!result) {
      done(std::unexpected(
          Error(result.error()).context(fmt::format("disk {}", vireo::quoted(id)))));
      return;
    }
    const DriveState state = {.id = id, .path = path, .bytes = machine.devices().disk_size(id)};
    remember(machine.config(), state, limit);
    log_info("block", "disk {}: now {}, {} bytes", id, path, state.bytes);
    done(state);
  };
  if (Result<> begun = machine.devices().change_disk(id, std::move(wanted), finish); !begun) {
    return in_context(std::move(begun).error());
  }
  return {};
}

}  // namespace vireo
