// SPDX-License-Identifier: Apache-2.0
#include "src/bus/bus.h"

#include <array>
#include <csignal>
#include <functional>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/catch.h"

namespace vireo {
namespace {

/// Remembers the last access.
class Recorder final : public BusDevice {
 public:
  void read(std::uint64_t offset, std::span<std::byte> data) override {
    last_offset = offset;
    for (std::byte& byte : data) {
      byte = std::byte{0x5a};
    }
  }
  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    last_offset = offset;
    last_size = data.size();
  }

  std::uint64_t last_offset = 0;
  std::size_t last_size = 0;
};

TEST_CASE("bus: each access reaches the device whose range holds it") {
  Bus bus;
  Recorder low;
  Recorder high;
  bus.add(0x100, 8, high, "high");
  bus.add(0x60, 1, low, "low");
  bus.freeze();
  std::array<std::byte, 4> data = {};
  CHECK(bus.write(0x104, data));
  CHECK(high.last_offset == 4);
  CHECK(high.last_size == 4);
  CHECK(bus.read(0x60, std::span(data).first(1)));
  CHECK(data[0] == std::byte{0x5a});
  CHECK(low.last_offset == 0);
  CHECK(bus.read(0x106, std::span(data).first(2)));
  CHECK(high.last_offset == 6);
  REQUIRE(bus.find(0x107, 1) != nullptr);
  CHECK(bus.find(0x107, 1)->name == "high");
}

TEST_CASE("bus: nothing answers with all ones, across a device's end too") {
  Bus bus;
  Recorder device;
  bus.add(0x100, 8, device, "device");
  bus.add(~std::uint64_t{0} - 3, 4, device, "top");
  for (const std::uint64_t address :
       {std::uint64_t{0xff}, std::uint64_t{0x105}, std::uint64_t{0x108}, std::uint64_t{0},
        ~std::uint64_t{0} - 1}) {
    std::array<std::byte, 4> data = {};
    CHECK_FALSE(bus.read(address, data));
    for (const std::byte byte : data) {
      CHECK(byte == std::byte{0xff});
    }
    CHECK_FALSE(bus.write(address, data));
  }
  std::array<std::byte, 4> data = {};
  CHECK(bus.read(~std::uint64_t{0} - 3, data));
}

/// Whether `work` fails a check of ours: it aborts a child.
bool aborts(const std::function<void()>& work) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const rlimit no_core = {};
    ::setrlimit(RLIMIT_CORE, &no_core);
    std::signal(SIGABRT, SIG_DFL);  // Catch has a handler of its own
    ::close(STDERR_FILENO);
    work();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

TEST_CASE("bus: ranges that touch are fine, ranges that overlap are a bug of ours") {
  struct Place {
    std::uint64_t base;
    std::uint64_t size;
    bool fits;
  };
  constexpr std::uint64_t kTop = ~std::uint64_t{0};
  constexpr std::array kPlaces = {
      Place{0xf8, 8, true},      Place{0xf8, 9, false},     Place{0x110, 1, true},
      Place{0x10f, 1, false},    Place{0x100, 16, false},   Place{0x104, 4, false},
      Place{0x0, 0x1000, false}, Place{0x200, 0, false},    Place{kTop, 1, true},
      Place{kTop, 2, false},     Place{0x110, kTop, false},
  };
  for (const Place& place : kPlaces) {
    CHECK(aborts([&place] {
            Bus bus;
            Recorder device;
            bus.add(0x100, 16, device, "there");
            bus.add(place.base, place.size, device, "new");
          }) != place.fits);
  }
}

TEST_CASE("bus: nothing is added to a frozen one") {
  const auto add = [](bool frozen) {
    Bus bus;
    Recorder device;
    if (frozen) {
      bus.freeze();
    }
    bus.add(0x100, 16, device, "late");
  };
  CHECK_FALSE(aborts([&add] { add(false); }));
  CHECK(aborts([&add] { add(true); }));
}

}  // namespace
}  // namespace vireo
