// SPDX-License-Identifier: Apache-2.0
// The table of tests: a new one adds its file, a line here and a line in meson.build.
#include "tests.h"

const struct test tests[] = {
    {"start", test_start},
    {"hello", test_hello},
    {"info", test_info},
    {"mark", test_mark},
    {"boot-timer", test_boot_timer},
    {"spin", test_spin},
    {"exits", test_exits},
    {"irq", test_irq},
    {"touch", test_touch},
    {"blk", test_blk},
    {"echo", test_echo},
    {"serial-irq", test_serial_irq},
    {"button", test_button},
    {"hold", test_hold},
    {"trap", test_trap},
    {"poweroff", test_power_off},
    {"reboot", test_reboot},
    {"triple", test_triple_fault},
    {"panic", test_panic},
    {"halt", test_halt},
};
const size_t test_count = sizeof(tests) / sizeof(tests[0]);
