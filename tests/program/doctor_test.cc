// SPDX-License-Identifier: Apache-2.0
#include "src/doctor.h"

#include <string>
#include <string_view>

#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr Check kDisk = {"disk", "the disk", "nothing is kept", "buy one"};
constexpr Check kTape = {"tape", "the tape", "nothing is rewound", "find one"};

Diagnosis diagnosis_of(std::vector<Finding> findings) {
  Diagnosis diagnosis;
  diagnosis.sections.push_back({.id = "storage", .title = "Storage"});
  diagnosis.sections.back().findings = std::move(findings);
  return diagnosis;
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("doctor: the report for people") {
  const std::string text =
      to_text(diagnosis_of({found(kDisk, "spins"), unknown(kTape, "no answer")}));
  CHECK(contains(text, ": VMs can run here\n2 checks: 1 ok, 0 lacking, 1 unknown\n"));
  CHECK(contains(text, "\nStorage\n  ok       the disk: spins\n  unknown  the tape: no answer\n"));
}

TEST_CASE("doctor: a lack tells what it costs and how to mend it") {
  const std::string text = to_text(diagnosis_of({lacking(kTape, "torn")}));
  CHECK(contains(text,
                 "  lacking  the tape: torn\n"
                 "           costs: nothing is rewound\n"
                 "           mend: find one\n"));
  CHECK(contains(text, "VMs can run here"));
}

TEST_CASE("doctor: the first thing that is in the way of every VM is told first") {
  const Diagnosis diagnosis =
      diagnosis_of({lacking(kTape, "torn"), blocking(kDisk, "stands", ErrorCode::kSystem),
                    blocking(kTape, "torn", ErrorCode::kNoKvm)});
  REQUIRE(diagnosis.blocker() != nullptr);
  CHECK(diagnosis.blocker()->blocker == ErrorCode::kSystem);
  CHECK(contains(to_text(diagnosis), ": no VM can run here: the disk: stands\n"));
  CHECK(contains(to_json(diagnosis), "\"can_run\": false"));
}

TEST_CASE("doctor: lines end before the right edge, at a space") {
  std::string words;
  for (int i = 0; i < 100; ++i) {
    words += "word ";
  }
  words += "end";
  const std::string long_word(150, 'x');
  const std::string text =
      to_text(diagnosis_of({found(kDisk, words), found(kTape, long_word + " end")}));
  std::string joined;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    INFO(line);
    const std::size_t begin = line.find_first_not_of(' ');
    CHECK((line.size() <= 100 || begin == line.find(long_word)));
    CHECK_FALSE(line.ends_with(' '));
    if (begin != std::string_view::npos) {
      joined += std::string(line.substr(begin)) + " ";
    }
  }
  CHECK(contains(joined, "the disk: " + words + " ok "));
  CHECK(contains(joined, "the tape: " + long_word + " end "));
}

TEST_CASE("doctor: what others have named cannot break the report") {
  const Diagnosis diagnosis = diagnosis_of({found(kDisk, "a\nb\x1b[2J\xff")});
  const std::string text = to_text(diagnosis);
  CHECK_FALSE(contains(text, "a\nb"));
  CHECK_FALSE(contains(text, "\x1b"));
  CHECK(contains(to_json(diagnosis), R"("value": "a\nb\u001b[2J)"));
}

}  // namespace
}  // namespace vireo
