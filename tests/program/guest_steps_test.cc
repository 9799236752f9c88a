// SPDX-License-Identifier: Apache-2.0
#include "src/guest_steps.h"

#include <cstddef>
#include <string>
#include <string_view>

#include "tests/support/catch.h"

namespace vireo {
namespace {

class Sink final : public SerialOutput {
 public:
  void transmit(std::byte byte) override { text.push_back(std::to_integer<char>(byte)); }
  void receiver_empty() override { ++empties; }

  std::string text;
  int empties = 0;
};

void print(GuestSteps& steps, std::string_view text) {
  for (const char c : text) {
    steps.transmit(static_cast<std::byte>(c));
  }
}

TEST_CASE("Linux's init functions are read off the console", "[guest_steps]") {
  Sink sink;
  GuestSteps steps(sink);
  const std::string text =
      "[    0.123456] calling  acpi_init+0x0/0x4d0 @ 1\r\n"
      "[    0.223456] initcall acpi_init+0x0/0x4d0 returned 0 after 76000 usecs\r\n"
      "initcall init_module.part.0+0x0/0x10 [virtio_net] returned -19 after 7 usecs \n";
  print(steps, text);
  REQUIRE(steps.steps().size() == 2);
  CHECK_THAT(steps.steps()[0].name, Catch::Equals("acpi_init"));
  CHECK(steps.steps()[0].duration_us == 76000);
  CHECK_THAT(steps.steps()[1].name, Catch::Equals("init_module.part.0"));
  CHECK(steps.steps()[1].duration_us == 7);
  CHECK(sink.text == text);
  steps.receiver_empty();
  CHECK(sink.empties == 1);
}

TEST_CASE("what only looks like a step is none", "[guest_steps]") {
  Sink sink;
  GuestSteps steps(sink);
  const std::string_view line =
      GENERATE("initcall \n", "initcall foo returned 0 after 1 usecs\n",
               "initcall +0x0/0x1 returned 0 after 1 usecs\n",
               "initcall f\xff+0x0/0x1 returned 0 after 1 usecs\n",
               "initcall \"x\"+0x0/0x1 returned 0 after 1 usecs\n",
               "initcall foo+0x0/0x1 after 1 usecs returned 0\n",
               "initcall foo+0x0/0x1 returned 0 after usecs\n",
               "initcall foo+0x0/0x1 returned 0 after -1 usecs\n",
               "initcall foo+0x0/0x1 returned 0 after 1 msecs\n",
               "initcall foo+0x0/0x1 returned 0 after 99999999999999999999 usecs\n",
               "initcall foo+0x0/0x1 returned 0 after 1 usecs");
  print(steps, line);
  CHECK(steps.steps().empty());
}

TEST_CASE("a guest that prints without end costs bounded memory", "[guest_steps]") {
  Sink sink;
  GuestSteps steps(sink);
  print(steps, std::string(100'000, 'x') + " initcall a+0x0/0x1 returned 0 after 1 usecs\n");
  CHECK(steps.steps().empty());
  for (std::size_t i = 0; i < GuestSteps::kStepsMax + 10; ++i) {
    print(steps, "initcall b+0x0/0x1 returned 0 after 2 usecs\n");
  }
  CHECK(steps.steps().size() == GuestSteps::kStepsMax);
}

}  // namespace
}  // namespace vireo
