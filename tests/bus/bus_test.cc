// SPDX-License-Identifier: Apache-2.0
#include "src/bus/bus.h"

#include <array>

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

}  // namespace
}  // namespace vireo
