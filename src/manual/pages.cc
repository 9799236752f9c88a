// SPDX-License-Identifier: Apache-2.0
#include "src/manual/pages.h"

#include <algorithm>

#include <fmt/core.h>

#include "src/manual/commands.h"
#include "src/manual/json.h"
#include "src/manual/keys.h"
#include "src/manual/verbs.h"

namespace vireo::manual {

namespace {

/// Text of which roff changes nothing: what is copied from a page works in a shell.
std::string literal(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '\\':
        result += "\\e";
        break;
      case '-':
        result += "\\-";
        break;
      case '\'':
        result += "\\(aq";
        break;
      case '`':
        result += "\\(ga";
        break;
      case '^':
        result += "\\(ha";
        break;
      case '~':
        result += "\\(ti";
        break;
      case '"':
        result += "\\(dq";
        break;
      default:
        result += c;
    }
  }
  return result.starts_with('.') ? "\\&" + result : result;
}

/// The same as lines of text, each sentence on a line of its own as mdoc wants it.
std::string prose(std::string_view text) {
  std::string result = literal(text);
  for (std::size_t at = 0; (at = result.find(". ", at)) != std::string::npos; ++at) {
    const char next = at + 2 < result.size() ? result[at + 2] : ' ';
    if (next >= 'A' && next <= 'Z') {
      result[at + 1] = '\n';
    }
  }
  return result + "\n";
}

std::string list(const std::string& items) {
  return items.empty() ? items : fmt::format(".Bl -tag -width Ds\n{}.El\n", items);
}

const Command* find_command(std::string_view name) {
  const auto* const found = std::ranges::find(kCommands, name, &Command::name);
  return found == kCommands.end() ? nullptr : found;
}

std::string synopsis() {
  std::string text;
  for (const Command& command : kCommands) {
    text += fmt::format(".Nm vireo\n.Ic {}\n.No {}\n", command.name, literal(command.usage));
  }
  return text + ".Nm vireo\n.Ic help\n.Op Ar COMMAND\n.Nm vireo\n.Fl \\-version\n";
}

std::string option_list(const Command& command) {
  std::string items;
  for (const Option& option : command.options) {
    items += fmt::format(".It Fl {}", literal(option.name).substr(2));
    if (option.value != nullptr) {
      items += fmt::format(" Ar {}", literal(option.value));
    }
    items += fmt::format("\n{}", prose(option.help));
    if (option.key != nullptr) {
      items += fmt::format(".Pq key Ic {}\n", literal(option.key));
    }
  }
  return list(items);
}

std::string verb_list() {
  std::string items;
  for (const Verb& verb : kVerbs) {
    items += fmt::format(".It Ic {} Pq {}\n{}", literal(verb.name), verb.method, prose(verb.help));
  }
  return list(items);
}

std::string example_lines(const Command& command) {
  std::string text;
  for (const char* const example : command.examples) {
    text += literal(example) + "\n";
  }
  return text;
}

std::string status_list(const Command& command) {
  std::string items;
  for (const ExitStatus& status : command.statuses) {
    items += fmt::format(".It {}\n{}", status.number, prose(status.meaning));
  }
  return list(items);
}

/// The option of `run` that sets `key`, or null.
const Option* option_of(std::string_view key) {
  const auto* const found = std::ranges::find_if(kRunOptions, [key](const Option& option) {
    return option.key != nullptr && option.key == key;
  });
  return found == kRunOptions.end() ? nullptr : found;
}

std::string key_list(std::string_view table) {
  std::string items;
  for (const Key& key : kKeys) {
    const std::size_t dot = key.path.find('.');
    const std::string_view type = key.type;
    const bool top = dot == std::string_view::npos && type != "table" && type != "tables";
    if ((top ? "top" : key.path.substr(0, dot)) != table) {
      continue;
    }
    items += fmt::format(".It Ic {} Pq {}\n{}", literal(key.path), literal(key.type),
                         prose(key.meaning));
    if (*key.initial != '\0') {
      items += fmt::format("Default:\n.Li {} .\n", literal(key.initial));
    }
    if (const Option* const option = option_of(key.path)) {
      items += fmt::format("Option:\n.Fl {} .\n", literal(option->name).substr(2));
    }
  }
  return list(items);
}

std::string field_list(std::string_view name) {
  const auto* const object = std::ranges::find(kObjects, name, &Object::name);
  if (object == kObjects.end()) {
    return {};
  }
  std::string items;
  for (const Field& field : object->fields) {
    items += fmt::format(".It Va {} Pq {}{}\n{}", literal(field.path), field.type,
                         field.optional ? ", optional" : "", prose(field.meaning));
  }
  return list(items);
}

}  // namespace

std::string page_part(std::string_view name, std::string_view argument) {
  const Command* const command = find_command(argument);
  if (name == "os") {
    return ".Os vireo " VIREO_VERSION "\n";
  }
  if (name == "synopsis") {
    return synopsis();
  }
  if (name == "verbs") {
    return verb_list();
  }
  if (name == "keys") {
    return key_list(argument);
  }
  if (name == "fields") {
    return field_list(argument);
  }
  if (command == nullptr) {
    return {};
  }
  if (name == "options") {
    return option_list(*command);
  }
  if (name == "examples") {
    return example_lines(*command);
  }
  return name == "statuses" ? status_list(*command) : std::string();
}

}  // namespace vireo::manual
