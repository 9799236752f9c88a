// SPDX-License-Identifier: Apache-2.0
#include "src/restore.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/core.h>

#include "src/base/fd_path.h"
#include "src/config_keys.h"
#include "src/option_words.h"
#include "src/saved_disks.h"
#include "src/saved_machine.h"

namespace vireo {

namespace {

std::unexpected<Error> in_file(const RestoreSource& source, Error error) {
  return std::unexpected(std::move(error).context(source.path));
}

Result<std::string> id_of(const RestoreCommand::Change& change) {
  for (const OptionWord& word : split_option_words(change.text)) {
    if (word.key == "id" && word.value) {
      return *word.value;
    }
  }
  return fail(ErrorCode::kUsage,
              fmt::format("{}: wants id=, and what is at another place now", change.option));
}

/// What of a disk is the host's, so that another process may have it at another place.
bool may_change(std::string_view key) {
  return key == "id" || key == "path" || key == "overlay" || key == "direct" ||
         key == "base_format";
}

/// Changes the disk or the volume that the option names.
template <typename Table>
Result<> change_table(std::vector<Table>& tables, std::vector<Table> Config::* member,
                      const RestoreCommand::Change& change) {
  TRY_ASSIGN(const std::string id, id_of(change));
  const auto table = std::ranges::find(tables, id, &Table::id);
  if (table == tables.end()) {
    std::string ids;
    for (const Table& each : tables) {
      ids += fmt::format("{}{}", ids.empty() ? "" : ", ", each.id);
    }
    return fail(ErrorCode::kUsage,
                fmt::format("{} {}: the snapshot has none of that id; {}", change.option,
                            quoted(id), ids.empty() ? "it has none at all" : "it has " + ids));
  }
  Config scratch;
  (scratch.*member).push_back(*table);
  for (const OptionWord& word : split_option_words(change.text)) {
    const std::string path = fmt::format("{}.{}", change.key, word.key);
    const ConfigKey* const key = find_config_key(path);
    const std::string where = fmt::format("{} {}: {}", change.option, quoted(id), word.key);
    if (key == nullptr || key->set == nullptr || !may_change(word.key)) {
      return fail(ErrorCode::kUsage,
                  where + ": stays as it is in the snapshot; wants path, overlay or direct");
    }
    ConfigValue::Content content = ConfigValue::FlagWord();
    if (word.value) {
      content = ConfigValue::OptionText{*word.value};
    }
    TRY(key->set(ConfigValue(std::move(content), where, ErrorCode::kUsage), scratch));
  }
  *table = (scratch.*member).front();
  return {};
}

/// Beside those that it was started without.
Result<> hide_features(Config& config, const RestoreCommand::Change& change) {
  const std::vector<OptionWord> words = split_option_words(change.text);
  const auto is_name = [](const OptionWord& word) {
    return !word.value && !word.key.empty() && !word.key.starts_with('-') &&
           !word.key.starts_with('+');
  };
  if (words.empty() || !std::ranges::all_of(words, is_name)) {
    return fail(ErrorCode::kUsage,
                fmt::format("{}: {}: wants names of features, as /proc/cpuinfo has them: "
                            "avx512f,avx512dq",
                            change.option, quoted(change.text)));
  }
  for (const OptionWord& word : words) {
    config.machine.cpu_features.push_back("-" + word.key);
  }
  return {};
}

Result<> apply(Config& config, const RestoreCommand::Change& change) {
  if (change.key == "machine.cpu_features") {
    return hide_features(config, change);
  }
  if (change.key == "disk") {
    return change_table(config.disks, &Config::disks, change);
  }
  if (change.key == "volume") {
    return change_table(config.volumes, &Config::volumes, change);
  }
  if (change.key == "serial.mode") {
    config.serial = {};
    return set_table_option(config, "serial", change.option, change.text, "mode");
  }
  return set_config_option(config, change.key, change.option, change.text);
}

/// In place of a descriptor that the saved process had inherited, which says nothing here.
constexpr std::string_view kGone = "fd:";

/// Calls `visit(path, what it is, how it is given)` for each path that names something of the host.
template <typename Visit>
Result<> for_each_path(Config& config, Visit visit) {
  for (DiskConfig& disk : config.disks) {
    const std::string what = fmt::format("disk {}", quoted(disk.id));
    TRY(visit(disk.path, what, fmt::format("--disk id={},path=PATH", disk.id)));
    TRY(visit(disk.overlay, what, fmt::format("--disk id={},overlay=PATH", disk.id)));
  }
  for (VolumeConfig& volume : config.volumes) {
    TRY(visit(volume.path, fmt::format("volume {}", quoted(volume.id)),
              fmt::format("--volume id={},path=PATH", volume.id)));
  }
  return visit(config.serial.path, "serial", "--serial");
}

Result<> forget_descriptors(Config& config) {
  return for_each_path(config, [](std::string& path, const auto&, const auto&) -> Result<> {
    path = is_inherited(path) ? kGone : path;
    return {};
  });
}

Result<> refuse_forgotten(Config& config) {
  return for_each_path(
      config, [](const std::string& path, const auto& what, const auto& wanted) -> Result<> {
        return path != kGone
                   ? Result<>()
                   : fail(ErrorCode::kConfig,
                          fmt::format(
                              "{}: was a descriptor that the saved VM had inherited; wants {}",
                              what, wanted));
      });
}

/// Whether the command line has `key` of the disk or volume `id`.
bool gives(const RestoreCommand& command, const std::string& id, std::string_view key) {
  return std::ranges::any_of(command.changes, [&](const RestoreCommand::Change& change) {
    const std::vector<OptionWord> words = split_option_words(change.text);
    const auto is_id = [&id](const OptionWord& word) {
      return word.key == "id" && word.value == id;
    };
    return (change.key == "disk" || change.key == "volume") && std::ranges::any_of(words, is_id) &&
           std::ranges::find(words, key, &OptionWord::key) != words.end();
  });
}

/// Whether its overlay has what the guest has written.
bool keeps_overlay(const SavedDisks::Disk& disk) {
  return disk.overlay && !disk.frozen;
}

/// Those that the command line names: at another place, or as they are.
Result<> accept_disks(const Config& config, const SavedDisks& saved, const RestoreCommand& command,
                      RestoreSource& source) {
  for (const std::string& id : command.stale_disks) {
    if (std::ranges::find(config.disks, id, &DiskConfig::id) == config.disks.end() &&
        std::ranges::find(config.volumes, id, &VolumeConfig::id) == config.volumes.end()) {
      return fail(ErrorCode::kUsage,
                  fmt::format("--stale-disk: {}: the snapshot has no such disk", quoted(id)));
    }
    source.accepted_disks.push_back(id);
  }
  for (const SavedDisks::Disk& disk : saved.disks) {
    // An overlay over one that is frozen leaves it as it is, which is looked at.
    if (gives(command, disk.id, "path") ||
        (keeps_overlay(disk) && gives(command, disk.id, "overlay"))) {
      source.accepted_disks.push_back(disk.id);
    }
  }
  return {};
}

/// One that is gone would be made anew, without what the guest has written.
Result<> check_overlays(const Config& config, const SavedDisks& saved,
                        const RestoreCommand& command) {
  for (const SavedDisks::Disk& disk : saved.disks) {
    const auto table = std::ranges::find(config.disks, disk.id, &DiskConfig::id);
    if (keeps_overlay(disk) && !gives(command, disk.id, "path") && table != config.disks.end() &&
        !is_inherited(table->overlay) && ::access(table->overlay.c_str(), F_OK) < 0) {
      return fail(ErrorCode::kMissingInput,
                  fmt::format("disk {}: the overlay with what the guest has written is not at {}; "
                              "wants its place (--disk id={},overlay=PATH)",
                              quoted(disk.id), table->overlay, disk.id));
    }
  }
  return {};
}

/// What a snapshot says of its machine and its disks.
struct Saved {
  SavedMachine machine;
  SavedDisks disks;
};

Result<Saved> read_saved(const RestoreSource& source) {
  Saved saved;
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(source.snapshot.sections()));
  TRY_ASSIGN(saved.machine, reader.take<SavedMachine>(0));
  TRY_ASSIGN(saved.disks, reader.take<SavedDisks>(0));
  return saved;
}

/// The machine with the changes of the command line.
Result<Config> changed_config(const RestoreSource& source, const SavedMachine& machine,
                              const RestoreCommand& command) {
  auto config = config_of(machine);
  if (!config) {
    return in_file(source, std::move(config).error());
  }
  TRY(forget_descriptors(*config));
  for (const RestoreCommand::Change& change : command.changes) {
    TRY(apply(*config, change));
  }
  config->log.name = config->name;
  if (Result<> same = check_memory_map(machine, *config); !same) {
    return in_file(source, std::move(same).error());
  }
  return config;
}

Result<> take_places(RestoreSource& source, const SavedMachine& machine, const Config& config) {
  auto places = places_of(machine, config);
  if (!places) {
    return in_file(source, std::move(places).error());
  }
  source.mmio_places = std::move(*places);
  return {};
}

/// How memory comes out of it.
Result<> choose_memory(const Config& config, const RestoreCommand& command, RestoreSource& source) {
  const bool reserved =
      config.machine.huge_pages == HugePages::k2M || config.machine.huge_pages == HugePages::k1G;
  const bool compressed = source.snapshot.facts().compressed;
  if (command.memory == "map" && (reserved || compressed)) {
    return fail(ErrorCode::kUsage,
                fmt::format("--memory: \"map\" has the pages of the snapshot's file, and {}",
                            compressed ? "this one is compressed; wants \"fill\" or \"copy\""
                                       : "machine.hugepages of this VM wants others; wants "
                                         "\"copy\""));
  }
  // Pages that are there before the guest runs are not brought while it does.
  const bool at_once = reserved || config.machine.prefault;
  if (command.memory == "copy" || reserved) {
    source.memory = MemoryMode::kCopy;
  } else if (command.memory == "fill" || compressed) {
    source.memory = at_once ? MemoryMode::kCopy : MemoryMode::kFill;
  }
  return {};
}

/// What another VM has touched of the same snapshot, or where this one's is to be.
Result<> find_working_set(const RestoreCommand& command, RestoreSource& source) {
  if (command.working_set.empty()) {
    return {};
  }
  if (source.memory != MemoryMode::kMap) {
    return fail(
        ErrorCode::kUsage,
        "--working-set: goes with memory that is mapped; wants --memory map, and a snapshot "
        "that is not compressed");
  }
  const std::string path = working_set_path(source.path);
  if (command.working_set == "record") {
    source.recorded_path = path;
    return {};
  }
  TRY_ASSIGN(const UniqueFd file, open_file(path, O_RDONLY));
  TRY_ASSIGN(const std::uint64_t size, regular_file_size(file.get()));
  // A run for each second page is the most that there can be.
  if (size > (source.snapshot.facts().pages / 2 + 4) * sizeof(WorkingSetRun)) {
    return fail(ErrorCode::kBadInput, path + ": working set: is longer than one can be");
  }
  std::vector<std::byte> bytes(size);
  if (Result<> read = read_full_at(file.get(), bytes, 0); !read) {
    return std::unexpected(std::move(read).error().context(path));
  }
  auto set = decode_working_set(bytes, source.snapshot.facts().pages);
  if (!set) {
    return std::unexpected(std::move(set).error().context(path));
  }
  if (set->snapshot != source.snapshot.facts().uuid) {
    return fail(ErrorCode::kBadInput,
                fmt::format("{}: working set: is of another snapshot; record it anew "
                            "(--working-set record)",
                            path));
  }
  source.working_set = std::move(set->runs);
  return {};
}

}  // namespace

Result<> check_restore_command(const RestoreCommand& command) {
  if (!command.memory.empty() && command.memory != "map" && command.memory != "fill" &&
      command.memory != "copy") {
    return fail(ErrorCode::kUsage, fmt::format("--memory: {}: wants map, fill or copy",
                                               vireo::quoted(command.memory)));
  }
  if (!command.working_set.empty() && command.working_set != "record" &&
      command.working_set != "use") {
    return fail(ErrorCode::kUsage, fmt::format("--working-set: {}: wants record or use",
                                               vireo::quoted(command.working_set)));
  }
  if (!command.working_set.empty() && command.standby) {
    return fail(ErrorCode::kUsage,
                "--working-set: is that of the snapshot in the command line; wants no --standby");
  }
  const auto is_control = [](const RestoreCommand::Change& change) {
    return change.key == "control.path";
  };
  if (command.standby && std::ranges::none_of(command.changes, is_control)) {
    return fail(ErrorCode::kUsage,
                "--standby: wants --control, over which it is told its snapshot");
  }
  return {};
}

Result<RestoreSource> open_snapshot(const RestoreCommand& command) {
  TRY_ASSIGN(UniqueFd file, open_path(command.snapshot, O_RDONLY));
  TRY_ASSIGN(RestoreSource source, read_snapshot(command.snapshot, std::move(file)));
  auto memory = open_memory_file(source.snapshot, source.path);
  if (!memory) {
    return in_file(source, std::move(memory).error());
  }
  source.memory_file = std::move(*memory);
  return source;
}

Result<RestoreSource> read_snapshot(std::string path, UniqueFd file) {
  RestoreSource source;
  source.path = std::move(path);
  source.file = std::move(file);
  auto snapshot = SnapshotFile::read(source.file.get());
  if (!snapshot) {
    return in_file(source, std::move(snapshot).error());
  }
  source.snapshot = std::move(*snapshot);
  if (source.snapshot.facts().architecture != vsnap::kArchX86_64) {
    return in_file(source,
                   {ErrorCode::kBadInput, fmt::format("is of another architecture (ELF machine {})",
                                                      source.snapshot.facts().architecture)});
  }
  if (source.snapshot.facts().diff) {
    return in_file(source, {ErrorCode::kBadInput,
                            "has only what changed since its parent; merge the two first (vireo "
                            "snapshot merge)"});
  }
  return source;
}

Result<Config> restored_config(RestoreSource& source, const RestoreCommand& command) {
  auto saved = read_saved(source);
  if (!saved) {
    return in_file(source, std::move(saved).error());
  }
  TRY_ASSIGN(Config config, changed_config(source, saved->machine, command));
  TRY(take_places(source, saved->machine, config));
  TRY(accept_disks(config, saved->disks, command, source));
  TRY(check_overlays(config, saved->disks, command));
  TRY(check_frozen(saved->disks, config, source.accepted_disks));
  TRY(refuse_forgotten(config));
  TRY(validate(config));
  TRY(choose_memory(config, command, source));
  TRY(find_working_set(command, source));
  return config;
}

Result<Config> config_in_standby(RestoreSource& source, const PreparedMachine& prepared) {
  if (source.snapshot.facts().memory_file && !source.memory_file.file) {
    return in_file(source, {ErrorCode::kBadInput,
                            "has its memory in a file of its own, which a VM that stands by cannot "
                            "open; put it into the snapshot (vireo snapshot decompress)"});
  }
  auto saved = read_saved(source);
  if (!saved) {
    return in_file(source, std::move(saved).error());
  }
  auto first = read_saved(prepared.first);
  if (!first) {
    return in_file(prepared.first, std::move(first).error());
  }
  Config config = prepared.config;
  // Most are the very same, and reading a configuration is what would take longest here.
  if (saved->machine.config != first->machine.config) {
    TRY_ASSIGN(config, changed_config(source, saved->machine, prepared.command));
    Config wanted = prepared.config;
    wanted.machine.uuid = config.machine.uuid;
    config.name = wanted.name;
    if (const std::string key = first_difference(config, wanted); !key.empty()) {
      return fail(ErrorCode::kConfig,
                  fmt::format("{}: has another {} than {}, from which this VM was prepared; wants "
                              "one that was prepared from its like",
                              source.path, key, prepared.first.path));
    }
  }
  TRY(take_places(source, saved->machine, config));
  if (source.mmio_places != prepared.first.mmio_places) {
    return fail(
        ErrorCode::kConfig,
        fmt::format("{}: has its devices at other addresses than {}, from which this VM was "
                    "prepared; wants one that was prepared from its like",
                    source.path, prepared.first.path));
  }
  TRY(accept_disks(config, saved->disks, prepared.command, source));
  TRY(check_frozen(saved->disks, config, source.accepted_disks));
  TRY(choose_memory(config, prepared.command, source));
  return config;
}

}  // namespace vireo
