// SPDX-License-Identifier: Apache-2.0
// Runs the tests that the command line names, in its order: "probe=hello probe=touch 64
// end=reboot".
#include "probe.h"

const struct start_info* start_info;

_Noreturn void probe_main(const struct start_info* info);

static _Noreturn void refuse(struct word name) {
  print("probe: no test is called '");
  for (size_t i = 0; i < name.size; ++i) {
    print_char(name.text[i]);
  }
  print("'; there are:");
  for (size_t i = 0; i < test_count; ++i) {
    print(" ");
    print(tests[i].name);
  }
  print("\n");
  end_panic();
}

static void run_test(struct word name, const struct argument* argument) {
  for (size_t i = 0; i < test_count; ++i) {
    if (word_is(name, tests[i].name)) {
      tests[i].run(argument);
      return;
    }
  }
  refuse(name);
}

_Noreturn void probe_main(const struct start_info* info) {
  start_info = info;
  if (info->magic != START_INFO_MAGIC) {
    print("probe: not started by PVH\n");
    end_panic();
  }
  if (info->command_line != 0) {
    command_line = (const char*)info->command_line;
  }
  const char* rest = command_line;
  bool any = false;
  for (struct word word; next_word(&rest, &word);) {
    if (!strip_name(&word, "probe")) {
      continue;
    }
    any = true;
    struct argument argument = {false, 0};
    const char* behind = rest;
    struct word following;
    if (next_word(&behind, &following) && take_number(&following, &argument.number)) {
      argument.given = true;
      rest = behind;
    }
    run_test(word, &argument);
  }
  if (!any) {
    refuse((struct word){"", 0});
  }
  end_as_told();
}
