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

#include "src/config_value.h"

namespace vireo {

namespace {

constexpr std::string_view kOverview =
    R"(vireo: a virtual machine monitor for Linux KVM. One process is one VM.

usage: vireo run [FILE.toml] [options]    boot a VM; the process ends with it
       vireo check FILE.toml [options]    validate, print the resolved configuration
       vireo ctl SOCKET VERB [options]    ask a running VM, or tell it what to do
       vireo doctor [--json]              what this host offers, and what it lacks
       vireo --help | --version           `vireo run --help` tells the options

exit status: 0 guest powered off or ordered stop; 10 guest asked for a reboot; 11 guest panicked;
12 guest crashed; 13 not ready in time; 64 wrong command line; 65 unusable input; 66 input missing; 69 KVM missing or
lacking; 70 our own fault; 71 the system refused a resource; 77 permission denied; 78 wrong
configuration
)";

constexpr std::string_view kFooter = R"(Examples:
  vireo run --kernel vmlinuz --initramfs initramfs.cpio
  vireo run web.toml --memory 1G --append quiet --timeline boot.json

Keys that only the file has: namespace, labels, machine.topology, machine.hugepages,
machine.mergeable, machine.prefault, machine.uuid, machine.cpu_features, machine.on_reboot,
boot.cache, boot.unpack, boot.kaslr, ready.timeout, limits.)";

constexpr std::string_view kDoctorFooter = R"(Examples:
  vireo doctor
  vireo doctor --json | jq '.findings[] | select(.state == "lacking")'

The report for programs has version, vireo (its version), can_run and findings; each of these has
section, id, title, state (ok, lacking, unknown), value, number (the value, where it is one, or null),
cost and remedy (both empty unless it is lacking). Every id is there on every host.

Exit status: 0 VMs can run here; 69 KVM is missing or lacks what vireo needs; 77 the user may not open
/dev/kvm; 71 the system refuses something else that every VM needs.)";

/// An option whose text goes to a key of the configuration.
struct ValueOption {
  const char* name;
  const char* key;
  const char* value;
  const char* help;
};

constexpr auto kValueOptions = std::to_array<ValueOption>({
    {"--name", "name", "NAME", "the VM's name"},
    {"--kernel", "boot.kernel", "PATH", "bzImage or ELF vmlinux, found by its content"},
    {"--initramfs", "boot.initramfs", "PATH", "initramfs (cpio)"},
    {"--cmdline", "boot.cmdline", "TEXT", "replaces the default kernel command line"},
    {"--append", "boot.append", "TEXT", "added to the kernel command line"},
    {"--cpus", "machine.cpus", "N", "virtual processors, 1-64 [1]"},
    {"--memory", "machine.memory", "SIZE", "guest memory, 32M-1T [512M]"},
    {"--control", "control.path", "PATH", "listens here for vireo ctl and other HTTP clients"},
    {"--ready", "ready.when", "WHEN",
     "started, serial:TEXT or mark:N makes the VM ready [started]"},
    {"--notify", "process.notify", "fd:N", "gets one byte when the VM is ready"},
    {"--metrics", "metrics.path", "FILE", "written on SIGUSR1 and at the end, JSON"},
    {"--sandbox", "sandbox.enabled", "on|off", "confines the process before the guest runs [on]"},
    {"--pid-file", "process.pid_file", "PATH", "holds the process id while the VM runs"},
    {"--timeline", "process.timeline", "FILE", "writes the boot timeline, JSON"},
    {"--profile", "process.profile", "FILE", "counts and times every kind of exit, JSON"},
    {"--log-level", "log.level", "LEVEL", "trace, debug, info, warn, error, off [info]"},
    {"--log-format", "log.format", "FORMAT", "text or json [text]"},
    {"--log-file", "log.file", "PATH", "default: stderr"},
});

/// Options of the interface that later versions will have: known, and refused by name.
constexpr std::array kLaterOptions = {"--disk",    "--volume", "--net",   "--vsock",     "--fs",
                                      "--balloon", "--rng",    "--netns", "--allow-path"};
constexpr std::array<std::string_view, 7> kLaterCommands = {"restore", "serve", "fork",    "exec",
                                                            "shell",   "cp",    "snapshot"};

/// --serial MODE[,path=PATH][,append]; each word once.
Result<> set_serial(Config& config, std::string_view text) {
  const std::size_t comma = text.find(',');
  std::string_view mode = text.substr(0, comma);
  mode.remove_prefix(mode.starts_with("mode=") ? 5 : 0);
  TRY(set_config_option(config, "serial.mode", "--serial", mode));
  for (std::size_t at = comma; at != std::string_view::npos;) {
    const std::size_t begin = at + 1;
    at = text.find(',', begin);
    const std::string_view word = text.substr(begin, at - begin);
    if (word.starts_with("path=") && config.serial.path.empty()) {
      TRY(set_config_option(config, "serial.path", "--serial: path", word.substr(5)));
    } else if (word == "append" && !config.serial.append) {
      config.serial.append = true;
    } else {
      return fail(ErrorCode::kUsage, fmt::format("--serial: unknown or repeated word {}; it takes "
                                                 "MODE[,path=PATH][,append]",
                                                 quoted(word)));
    }
  }
  return {};
}

struct ParsedOptions {
  std::string file;
  std::array<std::string, kValueOptions.size()> values;
  std::string serial;
  bool boot_timer = false;
};

void declare_options(CLI::App& app, ParsedOptions& parsed) {
  app.add_option("FILE", parsed.file, "configuration file (TOML); options win over it");
  for (std::size_t i = 0; i < kValueOptions.size(); ++i) {
    const ValueOption& option = kValueOptions[i];
    app.add_option(option.name, parsed.values[i], option.help)->type_name(option.value);
  }
  app.add_option("--serial", parsed.serial,
                 "stdio, file, pty, unix or null, then path=PATH and append where they apply "
                 "[stdio]; Ctrl-A x leaves a terminal")
      ->type_name("MODE[,...]");
  app.add_flag("--boot-timer", parsed.boot_timer, "Firecracker's boot timer at 0xc0000000");
  app.footer(std::string(kFooter));
}

Result<> apply(const CLI::App& app, const ParsedOptions& parsed, Config& config) {
  if (app.count("FILE") > 0) {
    TRY(read_config_file(parsed.file, config));
  }
  for (std::size_t i = 0; i < kValueOptions.size(); ++i) {
    const ValueOption& option = kValueOptions[i];
    if (app.count(option.name) > 0) {
      TRY(set_config_option(config, option.key, option.name, parsed.values[i]));
    }
  }
  if (app.count("--serial") > 0) {
    config.serial = {};
    TRY(set_serial(config, parsed.serial));
  }
  if (app.count("--boot-timer") > 0) {
    config.process.boot_timer = parsed.boot_timer;
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
Result<std::optional<std::string>> parse_with(CLI::App& app,
                                              std::span<const char* const> arguments) {
  std::vector<std::string> reversed(arguments.begin(), arguments.end());
  std::ranges::reverse(reversed);  // as CLI11 wants them
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    return app.help();
  } catch (const CLI::ParseError& error) {
    return fail(ErrorCode::kUsage,
                fmt::format("{} (see {} --help)", printable(error.what()), app.get_name()));
  }
  return std::nullopt;
}

Result<Invocation> parse_run_or_check(Command command, std::span<const char* const> arguments) {
  TRY(refuse_later_options(arguments));
  Invocation invocation;
  invocation.command = command;
  ParsedOptions parsed;
  CLI::App app(command == Command::kRun ? "Boots a VM and stays in the foreground until it ends."
                                        : "Validates and prints the resolved configuration.",
               command == Command::kRun ? "vireo run" : "vireo check");
  declare_options(app, parsed);
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
    return invocation;
  }
  TRY(apply(app, parsed, invocation.config));
  return invocation;
}

Result<Invocation> parse_doctor(std::span<const char* const> arguments) {
  Invocation invocation;
  invocation.command = Command::kDoctor;
  CLI::App app("Tells what this host offers VMs; for each lack, what it costs and how to mend it.",
               "vireo doctor");
  app.add_flag("--json", invocation.json, "the report for programs, with the same lines");
  app.footer(std::string(kDoctorFooter));
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
  }
  return invocation;
}

Result<Invocation> parse_ctl(std::span<const char* const> arguments) {
  Invocation invocation;
  invocation.command = Command::kCtl;
  CtlCommand& ctl = invocation.ctl;
  CLI::App app("Asks a running VM over its control socket, or tells it what to do.", "vireo ctl");
  app.add_option("SOCKET", ctl.socket, "what the VM was given as --control")->required();
  app.add_option("VERB", ctl.verb, "see below")->required();
  app.add_option("--timeout", ctl.timeout,
                 "of stop: how long the guest may take before the VM ends without it [10s]")
      ->type_name("DURATION");
  app.add_flag("--json", ctl.json, "prints the answer as it came, for programs");
  app.footer("Verbs:\n" + ctl_verbs_help() + R"(
Exit status: 0 done; 1 the VM refused (its reason on stderr); 64 wrong command line; 69 nobody is
behind that socket.

Examples:
  vireo ctl web-1.sock status
  vireo ctl web-1.sock stop --timeout 30s
  vireo ctl web-1.sock metrics --json
  curl --unix-socket web-1.sock http://vm/vireo/status)");
  TRY_ASSIGN(std::optional<std::string> help, parse_with(app, arguments));
  if (help) {
    invocation.command = Command::kPrint;
    invocation.text = std::move(*help);
    return invocation;
  }
  if (!is_ctl_verb(ctl.verb)) {
    return fail(ErrorCode::kUsage,
                fmt::format("{}: no verb of ctl (see vireo ctl --help)", vireo::quoted(ctl.verb)));
  }
  if (!ctl.timeout.empty() && (ctl.verb != "stop" || !parse_duration(ctl.timeout))) {
    return fail(ErrorCode::kUsage,
                ctl.verb != "stop"
                    ? std::string("--timeout: only the verb stop takes it")
                    : fmt::format("--timeout: {}: wants a duration with its unit, such as \"30s\"",
                                  vireo::quoted(ctl.timeout)));
  }
  return invocation;
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
  if (command == "run" || command == "check") {
    return parse_run_or_check(command == "run" ? Command::kRun : Command::kCheck,
                              arguments.subspan(2));
  }
  if (command == "ctl") {
    return parse_ctl(arguments.subspan(2));
  }
  if (command == "doctor") {
    return parse_doctor(arguments.subspan(2));
  }
  if (command == "--help" || command == "-h" || command == "help") {
    return Invocation{.command = Command::kPrint, .text = std::string(kOverview)};
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
