// SPDX-License-Identifier: Apache-2.0
#include "src/manual/completions.h"

#include <utility>

#include <fmt/core.h>

#include "src/manual/commands.h"
#include "src/manual/verbs.h"

namespace vireo::manual {

namespace {

/// In single quotes, as all three shells read them but for what ends them.
std::string quoted(std::string_view text, std::string_view quote_inside) {
  std::string result = "'";
  for (const char c : text) {
    result += c == '\'' ? quote_inside : std::string_view(&c, 1);
  }
  return result + "'";
}
std::string sh_quoted(std::string_view text) {
  return quoted(text, R"('\'')");
}
std::string fish_quoted(std::string_view text) {
  return quoted(text, R"(\')");
}

std::string verb_words() {
  std::string words;
  for (const Verb& verb : kVerbs) {
    words += fmt::format("{}{}", words.empty() ? "" : " ", verb.name);
  }
  return words;
}

std::string command_words() {
  std::string words;
  for (const Command& command : kCommands) {
    words += fmt::format("{} ", command.name);
  }
  return words + "help";
}

// bash
// -----------------------------------------------------------------------------------------------

/// What the functions of vireo.bash.in know as the kind of a value.
std::string bash_kind(Completes completes, std::string_view words) {
  switch (completes) {
    case Completes::kNothing:
      return "nothing";
    case Completes::kPath:
      return "paths";
    case Completes::kConfigFile:
      return "toml";
    case Completes::kWords:
      return fmt::format("words {}", words);
    case Completes::kVerb:
      return fmt::format("words {}", verb_words());
  }
  std::unreachable();
}

std::string bash_options() {
  std::string lines;
  for (const Command& command : kCommands) {
    std::string options = "--help";
    for (const Option& option : command.options) {
      options += fmt::format(" {}", option.name);
    }
    lines += fmt::format("    {}) options='{}' ;;\n", command.name, options);
  }
  return lines;
}

std::string bash_values() {
  std::string lines;
  for (const Command& command : kCommands) {
    for (const Option& option : command.options) {
      if (option.value != nullptr) {
        lines += fmt::format("    '{} {}') value='{}' ;;\n", command.name, option.name,
                             bash_kind(option.completes, option.words));
      }
    }
  }
  return lines;
}

std::string bash_arguments() {
  std::string lines;
  for (const Command& command : kCommands) {
    for (std::size_t place = 0; place < command.arguments.size(); ++place) {
      lines += fmt::format("    '{} {}') value='{}' ;;\n", command.name, place,
                           bash_kind(command.arguments[place].completes, {}));
    }
  }
  return lines;
}

// zsh
// -----------------------------------------------------------------------------------------------

/// Text within a specification of _arguments or _describe.
std::string zsh_text(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == ':' || c == '[' || c == ']' || c == '\\') {
      result += '\\';
    }
    result += c;
  }
  return result;
}

std::string zsh_action(Completes completes, std::string_view words) {
  switch (completes) {
    case Completes::kNothing:
      return " ";
    case Completes::kPath:
      return "_files";
    case Completes::kConfigFile:
      return "_files -g \"*.toml(-.)\"";
    case Completes::kWords:
      return fmt::format(" _vireo_words {}", zsh_text(words));
    case Completes::kVerb:
      return "_vireo_verbs";
  }
  std::unreachable();
}

std::string zsh_describe(std::string_view name, std::string_view help) {
  return fmt::format("    {}\n", sh_quoted(fmt::format("{}:{}", name, zsh_text(help))));
}

std::string zsh_commands() {
  std::string lines;
  for (const Command& command : kCommands) {
    lines += zsh_describe(command.name, command.summary);
  }
  return lines + zsh_describe("help", "what a command does, and its options");
}

std::string zsh_verbs() {
  std::string lines;
  for (const Verb& verb : kVerbs) {
    lines += zsh_describe(verb.name, verb.help);
  }
  return lines;
}

std::string zsh_option(const Option& option) {
  if (option.value == nullptr) {
    return fmt::format("{}[{}]", option.name, zsh_text(option.help));
  }
  return fmt::format("{}=[{}]:{}:{}", option.name, zsh_text(option.help), zsh_text(option.value),
                     zsh_action(option.completes, option.words));
}

std::string zsh_arguments() {
  constexpr std::string_view kNextLine = " \\\n            ";
  std::string lines;
  for (const Command& command : kCommands) {
    lines += fmt::format("        ({})\n          _arguments $help", command.name);
    for (const Option& option : command.options) {
      lines += fmt::format("{}{}", kNextLine, sh_quoted(zsh_option(option)));
    }
    for (std::size_t place = 0; place < command.arguments.size(); ++place) {
      const Argument& argument = command.arguments[place];
      lines += fmt::format("{}{}", kNextLine,
                           sh_quoted(fmt::format("{}:{}:{}", place + 1, argument.name,
                                                 zsh_action(argument.completes, {}))));
    }
    lines += "\n          ;;\n";
  }
  return lines;
}

// fish
// -----------------------------------------------------------------------------------------------

std::string fish_rule(std::string_view condition, std::string_view rest) {
  return fmt::format("complete -c vireo -n {} {}\n", fish_quoted(condition), rest);
}

std::string fish_values(Completes completes, std::string_view words) {
  switch (completes) {
    case Completes::kNothing:
      return "-x";
    case Completes::kPath:
      return "-r -F";
    case Completes::kConfigFile:
      return "-k -a '(__fish_complete_suffix .toml)'";
    case Completes::kWords:
      return fmt::format("-x -a {}", fish_quoted(words));
    case Completes::kVerb:
      return {};
  }
  std::unreachable();
}

std::string fish_with_value() {
  std::string names;
  for (const Command& command : kCommands) {
    for (const Option& option : command.options) {
      const std::string name = fmt::format(" {}", option.name);
      if (option.value != nullptr && !(names + " ").contains(name + " ")) {  // run's are check's
        names += name;
      }
    }
  }
  return fmt::format("    set -l with_value{}\n", names);
}

std::string fish_command_rules(const Command& command) {
  const std::string in_command = fmt::format("__vireo_command {}", command.name);
  std::string lines = fish_rule(in_command, "-s h -l help -d 'print help and exit'");
  for (const Option& option : command.options) {
    const std::string values =
        option.value != nullptr ? fish_values(option.completes, option.words) + " " : "";
    lines += fish_rule(in_command, fmt::format("-l {} {}-d {}", option.name + 2, values,
                                               fish_quoted(option.help)));
  }
  for (std::size_t place = 0; place < command.arguments.size(); ++place) {
    const std::string here = fmt::format("{}; and __vireo_place {}", in_command, place);
    const Argument& argument = command.arguments[place];
    if (argument.completes == Completes::kVerb) {
      for (const Verb& verb : kVerbs) {
        lines += fish_rule(here, fmt::format("-a {} -d {}", verb.name, fish_quoted(verb.help)));
      }
    } else {
      lines += fish_rule(here, fish_values(argument.completes, {}));
    }
  }
  return lines;
}

std::string fish_rules() {
  std::string lines;
  for (const Command& command : kCommands) {
    lines += fish_rule("__vireo_no_command",
                       fmt::format("-a {} -d {}", command.name, fish_quoted(command.summary)));
    lines +=
        fish_rule("__vireo_command help; and __vireo_place 0", fmt::format("-a {}", command.name));
    lines += fish_command_rules(command);
  }
  return lines;
}

}  // namespace

std::string completion_part(std::string_view name) {
  if (name == "bash-commands") {
    return "  local commands='" + command_words() + "'\n";
  }
  if (name == "bash-options") {
    return bash_options();
  }
  if (name == "bash-values") {
    return bash_values();
  }
  if (name == "bash-arguments") {
    return bash_arguments();
  }
  if (name == "zsh-commands") {
    return zsh_commands();
  }
  if (name == "zsh-verbs") {
    return zsh_verbs();
  }
  if (name == "zsh-arguments") {
    return zsh_arguments();
  }
  if (name == "fish-with-value") {
    return fish_with_value();
  }
  return name == "fish-rules" ? fish_rules() : std::string();
}

}  // namespace vireo::manual
