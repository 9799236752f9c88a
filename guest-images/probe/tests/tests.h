// SPDX-License-Identifier: Apache-2.0
#ifndef VIREO_PROBE_TESTS_H
#define VIREO_PROBE_TESTS_H

#include "../lib/probe.h"

void test_start(const struct argument* argument);
void test_hello(const struct argument* argument);
void test_info(const struct argument* argument);
void test_mark(const struct argument* argument);
void test_boot_timer(const struct argument* argument);
void test_spin(const struct argument* argument);
void test_exits(const struct argument* argument);
void test_irq(const struct argument* argument);
void test_touch(const struct argument* argument);
void test_blk(const struct argument* argument);
void test_echo(const struct argument* argument);
void test_serial_irq(const struct argument* argument);
void test_button(const struct argument* argument);
void test_hold(const struct argument* argument);
void test_trap(const struct argument* argument);
void test_power_off(const struct argument* argument);
void test_reboot(const struct argument* argument);
void test_triple_fault(const struct argument* argument);
void test_panic(const struct argument* argument);
void test_halt(const struct argument* argument);

#endif
