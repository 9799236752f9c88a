// SPDX-License-Identifier: Apache-2.0
#include "src/options.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include "src/config_keys.h"
#include "src/config_value.h"
#include "src/manual/commands.h"
#include "src/manual/verbs.h"
#include "src/option_words.h"

namespace vireo {

namespace {

/// Options of the interface that later versions will have: known, and refused by name.
constexpr std::array kLaterOptions = {"--net", "--vsock", "--fs", "--balloon", "--netns"};
constexpr std::array<std::string_view, 5> kLaterCommands = {"serve", "fork", "exec", "shell", "cp"};

std::string statuses_of(const manual::Command& command) {
  std::string text;
  for (const manual::ExitStatus& status : command.statuses) {
    text += fmt::format("  {:>2}  {}\n", status.number, status.meaning);
  }
  return text;
}

/// What stands below a command's options in its help.
std::string footer_of(const manual::Command& command) {
  std::string text;
  for (const manual::Argument& argument : command.arguments) {
    if (argument.completes == manual::Completes::kVerb) {
      text += "Verbs:\n";
      for (const manual::Verb& verb : manual::kVerbs) {
        text += fmt::format("  {:<14}{}\n", verb.name, verb.help);
      }
      text += '\n';
    }
  }
  text += "Examples:\n";
  for (const char* const example : command.examples) {
    text += fmt::format("  {}\n", example);
  }
  if (command.notes != nullptr) {
    text += fmt::format("\n{}\n", command.notes);
  }
  return text + "\nExit status:\n" + statuses_of(command);
}

/// The option of this name, which there is.
consteval const manual::Option& option_of(std::span<const manual::Option> options,
                                          std::string_view name) {
  return *std::ranges::find(options, name, &manual::Option::name);
}

void declare_value(CLI::App& app, const manual::Option& option, std::string& text) {
  app.add_option(option.name, text, option.help)->type_name(option.value);
}

void declare_flag(CLI::App& app, const manual::Option& option, bool& flag) {
  app.add_flag(option.name, flag, option.help);
}

void declare_argument(CLI::App& app, const manual::Argument& argument, std::string& text) {
  app.add_option(argument.name, text, argument.help)->required(argument.required);
}

std::string program_of(const manual::Command& command) {
  return fmt::format("vireo {}", command.name);
}

/// What the command line gives each of a command's options.
struct ParsedOptions {
  struct Value {
    std::string text;               // empty: those of flags
    std::vector<std::string> list;  // of repeatable ones
    bool flag = false;
  };
  explicit ParsedOptions(std::span<const manual::Option> all) : options(all), values(all.size()) {}

  std::string file;
  std::span<const manual::Option> options;
  std::vector<Value> values;
};

/// Whether each use of the option adds a device.
bool adds_table(const manual::Option& option) {
  return find_config_key(option.key)->kind == ConfigKey::Kind::kTables;
}

bool is_repeatable(const manual::Option& option) {
  return option.key != nullptr &&
         (adds_table(option) || find_config_key(option.key)->kind == ConfigKey::Kind::kList);
}

/// Those of the command line, or all, for help. One that nobody gives would be made for nothing,
/// and all of them take as long as the rest of a start.
void declare_options(CLI::App& app, const manual::Argument& file, ParsedOptions& parsed,
                     std::span<const char* const> arguments) {
  declare_argument(app, file, parsed.file);
  const auto has = [arguments](std::string_view name) {
    return std::ranges::any_of(arguments, [name](std::string_view argument) {
      return argument.substr(0, argument.find('=')) == name;
    });
  };
  const bool all = has("--help") || has("-h");
  for (std::size_t i = 0; i < parsed.options.size(); ++i) {
    const manual::Option& option = parsed.options[i];
    if (!all && !has(option.name)) {
      continue;
    }
    ParsedOptions::Value& value = parsed.values[i];
    if (is_repeatable(option)) {
      app.add_option(option.name, value.list, option.help)
          ->type_name(option.value)
          ->allow_extra_args(false);
    } else if (option.value != nullptr) {
      declare_value(app, option, value.text);
    } else {
      declare_flag(app, option, value.flag);
    }
  }
}

bool is_given(const CLI::App& app, const manual::Option& option) {
  const CLI::Option* const declared = app.get_option_no_throw(option.name);
  return declared != nullptr && declared->count() > 0;
}

Result<> apply(const CLI::App& app, const ParsedOptions& parsed, Config& config) {
  if (app.count("FILE") > 0) {
    TRY(read_config_file(parsed.file, config));
  }
  for (std::size_t i = 0; i < parsed.options.size(); ++i) {
    const manual::Option& option = parsed.options[i];
    const ParsedOptions::Value& value = parsed.values[i];
    if (!is_given(app, option)) {
      continue;
    }
    if (option.value == nullptr) {
      TRY(set_config_option(config, option.key, option.name, value.flag ? "true" : "false"));
    } else if (is_repeatable(option)) {
      for (const std::string& text : value.list) {
        TRY(adds_table(option) ? set_table_option(config, option.key, option.name, text)
                               : set_config_option(config, option.key, option.name, text));
      }
    } else if (std::string_view(option.name) == "--serial") {
      config.serial = {};
      TRY(set_table_option(config, "serial", option.name, value.text, "mode"));
    } else {
      TRY(set_config_option(config, option.key, option.name, value.text));
    }
  }
  config.log.name = config.name;
  return validate(config);
}

Result<> refuse_later_options(std::span<const char* const> arguments) {
  for (const std::string_view argument : arguments) {
    const std::string_view name = argument.substr(0, argument.find('='));
    if (std::ranges::find(kLaterOptions, name) != kLaterOptions.end()) {
      return fail(ErrorCode::kUsage, fmt::format("{}: not yet supported; remove it", name));
    }
  }
  return {};
}

/// Runs CLI11 over `arguments`; the help text where that is what was asked for.
Result<std::optional<std::string>> parse_with(CLI::App& app, const manual::Command& command,
                                              std::span<const char* const> arguments) {
  std::vector<std::string> reversed(arguments.begin(), arguments.end());
  std::ranges::reverse(reversed);  // as CLI11 wants them
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    app.footer(footer_of(command));
    return app.help();
  } catch (const CLI::ParseError& error) {
    return fail(ErrorCode::kUsage,
                fmt::format("{} (see {} --help)", printable(error.what()), app.get_name()));
  }
  return std::nullopt;
}

Result<Invocation> parse_run_or_check(const manual::Command& command,
                                      std::span<const char* const> arguments) {
  TRY(refuse_later_options(arguments));
  Invocation invocation;
  invocation.command = command.name == "run" ? Command::kRun : Command::kCheck;
  ParsedOptions parsed(command.options);
  CLI::App app(command.purpose, program_of(command));
  declare_options(app, command.arguments[0], parsed, arguments);
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, command, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
    return invocation;
  }
  TRY(apply(app, parsed, invocation.config));
  return invocation;
}

Result<Invocation> parse_restore(const manual::Command& command,
                                 std::span<const char* const> arguments) {
  TRY(refuse_later_options(arguments));
  Invocation invocation;
  invocation.command = Command::kRestore;
  ParsedOptions parsed(command.options);
  CLI::App app(command.purpose, program_of(command));
  declare_options(app, command.arguments[0], parsed, arguments);
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, command, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
    return invocation;
  }
  RestoreCommand& restore = invocation.restore;
  restore.snapshot = parsed.file;
  std::string stale;
  for (std::size_t i = 0; i < parsed.options.size(); ++i) {
    const manual::Option& option = parsed.options[i];
    const ParsedOptions::Value& value = parsed.values[i];
    if (!is_given(app, option)) {
      continue;
    }
    if (std::string_view(option.name) == "--standby") {
      restore.standby = true;
      continue;
    }
    if (option.key == nullptr) {
      const std::string_view name = option.name;
      (name == "--memory"        ? restore.memory
       : name == "--working-set" ? restore.working_set
                                 : stale) = value.text;
      continue;
    }
    std::vector<std::string> texts = value.list;
    if (!is_repeatable(option)) {
      texts = {option.value == nullptr ? std::string(value.flag ? "true" : "false") : value.text};
    }
    for (std::string& text : texts) {
      restore.changes.push_back(
          {.option = option.name, .key = option.key, .text = std::move(text)});
    }
  }
  if (!stale.empty()) {
    for (const OptionWord& word : split_option_words(stale)) {
      restore.stale_disks.push_back(word.key);
    }
  }
  TRY(check_restore_command(restore));
  return invocation;
}

Result<Invocation> parse_doctor(const manual::Command& command,
                                std::span<const char* const> arguments) {
  Invocation invocation;
  invocation.command = Command::kDoctor;
  CLI::App app(command.purpose, program_of(command));
  declare_flag(app, option_of(manual::kDoctorOptions, "--json"), invocation.json);
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, command, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
  }
  return invocation;
}

Result<Invocation> parse_ctl(const manual::Command& command,
                             std::span<const char* const> arguments) {
  Invocation invocation;
  invocation.command = Command::kCtl;
  CtlCommand& ctl = invocation.ctl;
  CLI::App app(command.purpose, program_of(command));
  declare_argument(app, manual::kCtlArguments[0], ctl.socket);
  declare_argument(app, manual::kCtlArguments[1], ctl.verb);
  declare_argument(app, manual::kCtlArguments[2], ctl.argument);
  declare_argument(app, manual::kCtlArguments[3], ctl.settings);
  declare_value(app, option_of(manual::kCtlOptions, "--timeout"), ctl.timeout);
  declare_value(app, option_of(manual::kCtlOptions, "--then"), ctl.then);
  declare_value(app, option_of(manual::kCtlOptions, "--disks"), ctl.disks);
  declare_value(app, option_of(manual::kCtlOptions, "--disk-files"), ctl.disk_files);
  declare_value(app, option_of(manual::kCtlOptions, "--rounds"), ctl.rounds);
  declare_value(app, option_of(manual::kCtlOptions, "--left"), ctl.left);
  declare_value(app, option_of(manual::kCtlOptions, "--over"), ctl.over);
  declare_flag(app, option_of(manual::kCtlOptions, "--diff"), ctl.diff);
  declare_flag(app, option_of(manual::kCtlOptions, "--seal"), ctl.seal);
  declare_value(app, option_of(manual::kCtlOptions, "--parent"), ctl.parent);
  declare_flag(app, option_of(manual::kCtlOptions, "--json"), ctl.json);
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, command, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
    return invocation;
  }
  if (!is_ctl_verb(ctl.verb)) {
    return fail(ErrorCode::kUsage,
                fmt::format("{}: no verb of ctl (see vireo ctl --help)", vireo::quoted(ctl.verb)));
  }
  TRY(check_ctl_command(ctl));
  if (!ctl.timeout.empty() && (ctl.verb != "stop" || !parse_duration(ctl.timeout))) {
    return fail(ErrorCode::kUsage,
                ctl.verb != "stop"
                    ? std::string("--timeout: only the verb stop takes it")
                    : fmt::format("--timeout: {}: wants a duration with its unit, such as \"30s\"",
                                  vireo::quoted(ctl.timeout)));
  }
  return invocation;
}

Result<Invocation> parse_disk(const manual::Command& command,
                              std::span<const char* const> arguments) {
  Invocation invocation;
  invocation.command = Command::kDisk;
  DiskCommand& disk = invocation.disk;
  CLI::App app(command.purpose, program_of(command));
  declare_argument(app, manual::kDiskArguments[0], disk.verb);
  declare_argument(app, manual::kDiskArguments[1], disk.overlay);
  declare_value(app, option_of(manual::kDiskOptions, "--base"), disk.base);
  declare_value(app, option_of(manual::kDiskOptions, "--base-format"), disk.base_format);
  declare_flag(app, option_of(manual::kDiskOptions, "--moved"), disk.moved);
  declare_flag(app, option_of(manual::kDiskOptions, "--json"), disk.json);
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, command, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
    return invocation;
  }
  const bool rebase = disk.verb == "rebase";
  const auto wrong = [](const char* what) { return fail(ErrorCode::kUsage, what); };
  if (disk.verb != "info" && disk.verb != "commit" && !rebase) {
    return fail(ErrorCode::kUsage, fmt::format("{}: no verb of disk; wants info, commit or rebase",
                                               vireo::quoted(disk.verb)));
  }
  if (rebase && disk.base.empty()) {
    return wrong("disk rebase: wants the new base: --base PATH");
  }
  if (disk.verb == "info" && !disk.base.empty()) {
    return wrong("--base: disk info does not take it");
  }
  if (disk.moved && !rebase) {
    return wrong("--moved: only disk rebase takes it");
  }
  if (!disk.base_format.empty()) {
    if (!rebase || disk.moved) {
      return wrong("--base-format: only disk rebase takes it, and not with --moved");
    }
    if (disk.base_format != "raw" && disk.base_format != "overlay") {
      return fail(ErrorCode::kUsage, fmt::format("--base-format: {}: wants raw or overlay",
                                                 vireo::quoted(disk.base_format)));
    }
  }
  if (disk.json && disk.verb != "info") {
    return wrong("--json: only disk info takes it");
  }
  if (disk.base.starts_with("fd:") || disk.overlay.starts_with("fd:")) {
    return wrong("disk: wants paths, not descriptors");
  }
  return invocation;
}

Result<Invocation> parse_snapshot(const manual::Command& command,
                                  std::span<const char* const> arguments) {
  Invocation invocation;
  invocation.command = Command::kSnapshot;
  SnapshotCommand& snapshot = invocation.snapshot;
  CLI::App app(command.purpose, program_of(command));
  declare_argument(app, manual::kSnapshotArguments[0], snapshot.verb);
  app.add_option(manual::kSnapshotArguments[1].name, snapshot.files,
                 manual::kSnapshotArguments[1].help)
      ->required();
  declare_value(app, option_of(manual::kSnapshotOptions, "--output"), snapshot.output);
  declare_flag(app, option_of(manual::kSnapshotOptions, "--json"), snapshot.json);
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, command, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
    return invocation;
  }
  const bool merge = snapshot.verb == "merge";
  const bool stores =
      snapshot.verb == "compress" || snapshot.verb == "decompress" || snapshot.verb == "split";
  const auto wrong = [](const char* what) { return fail(ErrorCode::kUsage, what); };
  if (snapshot.verb != "info" && snapshot.verb != "verify" && snapshot.verb != "seal" && !merge &&
      !stores) {
    return fail(
        ErrorCode::kUsage,
        fmt::format(
            "{}: no verb of snapshot; wants info, verify, merge, compress, decompress, split or "
            "seal",
            vireo::quoted(snapshot.verb)));
  }
  if (merge && snapshot.output.empty()) {
    return wrong("snapshot merge: wants the file that it makes: --output FILE");
  }
  if (!merge && !stores && !snapshot.output.empty()) {
    return wrong("--output: only snapshot merge, compress, decompress and split take it");
  }
  if (stores && !snapshot.output.empty() && snapshot.files.size() > 1) {
    return wrong("--output: goes with one file; without it each is replaced");
  }
  if (merge && snapshot.files.size() < 2) {
    return wrong("snapshot merge: wants a full snapshot, and diffs in their order");
  }
  if (snapshot.verb == "info" && snapshot.files.size() > 1) {
    return wrong("snapshot info: wants one file");
  }
  if (snapshot.json && snapshot.verb != "info") {
    return wrong("--json: only snapshot info takes it");
  }
  return invocation;
}

const manual::Command* find_command(std::string_view name) {
  const auto* const found = std::ranges::find(manual::kCommands, name, &manual::Command::name);
  return found == manual::kCommands.end() ? nullptr : found;
}

Result<Invocation> parse_command(const manual::Command& command,
                                 std::span<const char* const> arguments) {
  if (command.name == "ctl") {
    return parse_ctl(command, arguments);
  }
  if (command.name == "disk") {
    return parse_disk(command, arguments);
  }
  if (command.name == "restore") {
    return parse_restore(command, arguments);
  }
  if (command.name == "snapshot") {
    return parse_snapshot(command, arguments);
  }
  return command.name == "doctor" ? parse_doctor(command, arguments)
                                  : parse_run_or_check(command, arguments);
}

std::string overview() {
  std::string text = "vireo: a virtual machine monitor for Linux KVM. One process is one VM.\n\n";
  for (const manual::Command& command : manual::kCommands) {
    text += fmt::format("{} {:<35}{}\n", text.ends_with("\n\n") ? "usage:" : "      ",
                        fmt::format("vireo {} {}", command.name, command.usage), command.summary);
  }
  text +=
      "       vireo --help | --version           `vireo run --help` tells the options\n"
      "\nexit status of run:\n";
  return text + statuses_of(manual::kCommands[0]) +
         "\nManual pages: vireo(1), vireo.toml(5), vireo-json(7)\n";
}

/// `arguments`: what stands behind "help".
Result<Invocation> help_for(std::span<const char* const> arguments) {
  if (arguments.empty()) {
    return Invocation{.command = Command::kPrint, .text = overview()};
  }
  const manual::Command* const command = find_command(arguments[0]);
  if (command == nullptr || arguments.size() > 1) {
    return fail(ErrorCode::kUsage, fmt::format("help: {} is not a command of vireo (see vireo "
                                               "--help)",
                                               printable(arguments.back())));
  }
  constexpr std::array kHelp = {"--help"};
  return parse_command(*command, kHelp);
}

}  // namespace

Result<Invocation> parse_command_line(std::span<const char* const> arguments) {
  const std::string_view program = arguments.empty() ? std::string_view() : arguments[0];
  if (program.substr(program.rfind('/') + 1) == "firecracker") {
    return fail(ErrorCode::kUsage, "running under the name firecracker is not yet supported");
  }
  if (arguments.size() < 2) {
    return fail(ErrorCode::kUsage, "no command given (see vireo --help)");
  }
  const std::string_view command = arguments[1];
  if (const manual::Command* const known = find_command(command)) {
    return parse_command(*known, arguments.subspan(2));
  }
  if (command == "--help" || command == "-h" || command == "help") {
    return help_for(arguments.subspan(2));
  }
  if (command == "--version" || command == "-V") {
    return Invocation{.command = Command::kPrint, .text = "vireo " VIREO_VERSION "\n"};
  }
  const bool later = std::ranges::find(kLaterCommands, command) != kLaterCommands.end();
  return fail(ErrorCode::kUsage,
              fmt::format("{} {} (see vireo --help)", printable(command),
                          later ? "is not yet supported" : "is not a command of vireo"));
}

}  // namespace vireo
