// SPDX-License-Identifier: Apache-2.0
// Turns src/seccomp/rules.h into the header of BPF programs that src/sandbox.cc installs, so that a
// start costs no compilation of filters.
//
// usage: make_filters >seccomp_filters.h
//        make_filters list     one rule on a line, for the test that holds them to what is used:
//                              threads, 1 if the suites need not see it, call, argument, value
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include <linux/filter.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <unistd.h>

#include "src/seccomp/rules.h"

namespace {

using vireo::seccomp::Compare;
using vireo::seccomp::Rule;

constexpr scmp_datum_t kLower32 = 0xffffffff;

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "make_filters: %s\n", what);
  std::exit(1);
}

void add(scmp_filter_ctx filter, const Rule& rule) {
  const int call = seccomp_syscall_resolve_name(rule.call);
  if (call == __NR_SCMP_ERROR) {
    give_up(rule.call);
  }
  std::vector<scmp_arg_cmp> comparisons;
  int result = 0;
  switch (rule.compare) {
    case Compare::kNone:
      result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 0);
      break;
    case Compare::kEqual:
      comparisons = {{rule.argument, SCMP_CMP_MASKED_EQ, kLower32, rule.value}};
      result = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, call, 1, comparisons.data());
      break;
    case Compare::kDescriptor:
      // AT_FDCWD is the negative one.
      comparisons = {{rule.argument, SCMP_CMP_MASKED_EQ, 0x80000000, 0}};
      result = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, call, 1, comparisons.data());
      break;
  }
  if (result < 0) {
    give_up(rule.call);
  }
}

void print_filter(const char* name, unsigned threads) {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
  if (filter == nullptr) {
    give_up("seccomp_init");
  }
  // Calls are found by bisection: the hot ones would else pay for all before them.
  seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
  for (const Rule& rule : vireo::seccomp::kRules) {
    if ((rule.threads & threads) != 0) {
      add(filter, rule);
    }
  }
  const int file = ::memfd_create("filter", 0);
  if (file < 0 || seccomp_export_bpf(filter, file) < 0) {
    give_up("seccomp_export_bpf");
  }
  std::vector<sock_filter> code(static_cast<std::size_t>(::lseek(file, 0, SEEK_END)) /
                                sizeof(sock_filter));
  if (::pread(file, code.data(), code.size() * sizeof(sock_filter), 0) < 0) {
    give_up("pread");
  }
  std::printf("inline constexpr std::array<sock_filter, %zu> %s = {{\n", code.size(), name);
  for (const sock_filter& step : code) {
    std::printf("    {0x%x, %u, %u, 0x%x},\n", step.code, step.jt, step.jf, step.k);
  }
  std::printf("}};\n\n");
  ::close(file);
  seccomp_release(filter);
}

void print_list() {
  for (const Rule& rule : vireo::seccomp::kRules) {
    std::printf("%u %d %s", rule.threads, rule.rare != nullptr ? 1 : 0, rule.call);
    if (rule.compare == Compare::kEqual) {
      std::printf(" %u %u", rule.argument, rule.value);
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "list") {
    print_list();
    return 0;
  }
  std::printf(
      "// Made by src/seccomp/make_filters from src/seccomp/rules.h.\n#pragma once\n\n"
      "#include <array>\n\n#include <linux/filter.h>\n\nnamespace vireo {\n\n");
  using namespace vireo::seccomp;  // NOLINT(google-build-using-namespace)
  print_filter("kCommonFilter", kAll);
  print_filter("kMainFilter", kMain);
  print_filter("kVcpuFilter", kVcpu);
  print_filter("kIoFilter", kIo);
  print_filter("kOffloadFilter", kOffload);
  print_filter("kFeederFilter", kFeeder);
  std::printf("}  // namespace vireo\n");
  return 0;
}
