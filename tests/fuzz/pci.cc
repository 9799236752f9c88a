// SPDX-License-Identifier: Apache-2.0
// Fuzz target: a PCI bus with two virtio-rng devices, under a guest that reads and writes their
// configuration spaces, their BARs and its own memory as it likes, while the devices serve their
// queues on a reactor. BARs that move, also onto each other, are held against what the bus
// promises: doorbells hang where their own BAR answers, one at an address.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <linux/pci_regs.h>

#include "devices/pci/root.h"
#include "devices/rng/rng_device.h"
#include "devices/virtio/pci_transport.h"
#include "devices/virtio/uapi.h"
#include "src/base/endian.h"
#include "src/base/log.h"
#include "src/io/reactor.h"
#include "src/memory/guest_memory.h"
#include "tests/fuzz/fuzz_host.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/fuzz_pci.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMemorySize = 0x10000;
constexpr std::uint64_t kWindow = 0xd0000000;
constexpr std::uint64_t kWindowSize = 0x40000;
constexpr std::uint64_t kBarStep = 0x1000;
constexpr std::array<unsigned, 2> kSlots = {1, 9};

class Board {
 public:
  explicit Board(FuzzHost& host) : host_(host) {
    std::ranges::fill(host.room.bytes(), std::byte{0});
    const std::array<Reactor*, 1> reactors = {host.reactor.get()};
    for (unsigned i = 0; i < kSlots.size(); ++i) {
      transports_[i] =
          std::move(*PciTransport::create(devices_[i], *host.memory, reactors, routers_[i]));
      CHECK(root_.add(kSlots[i], transports_[i]->function()));
    }
  }
  ~Board() {
    for (const auto& transport : transports_) {
      transport->core().write_status(0);
      CHECK(transport->core().status() == 0);
    }
  }
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  void step(FuzzInput& input);
  void check();

 private:
  void check_doorbell(unsigned which);
  void access(FuzzInput& input, BusDevice& device, std::uint64_t offset, std::uint8_t what);
  void move_bar(FuzzInput& input, std::uint8_t what);
  void begin(unsigned which);
  std::uint64_t pick_config(FuzzInput& input, std::uint8_t what);
  std::uint64_t pick_memory(FuzzInput& input, std::uint8_t what);
  static std::uint64_t config_of(unsigned which) { return std::uint64_t{kSlots[which]} << 15; }
  template <typename T>
  T load(std::uint64_t offset) {
    std::array<std::byte, sizeof(T)> bytes;
    root_.ecam().read(offset, bytes);
    return std::bit_cast<LittleEndian<T>>(bytes);
  }
  template <typename T>
  static void store(BusDevice& device, std::uint64_t offset, T value) {
    device.write(offset, std::bit_cast<std::array<std::byte, sizeof(T)>>(LittleEndian<T>(value)));
  }

  FuzzHost& host_;
  std::array<FuzzMsiRouter, 2> routers_;
  FuzzPciHost pci_host_{kWindow, kWindowSize};
  std::array<RngDevice, 2> devices_;
  std::array<std::unique_ptr<PciTransport>, 2> transports_;
  PciRoot root_{*GuestRange::create(GuestAddress(kWindow), kWindowSize), pci_host_};
};

std::uint64_t Board::pick_config(FuzzInput& input, std::uint8_t what) {
  switch (what & 3U) {
    case 0:
    case 1:
      return config_of(what & 1U) + input.byte();
    default:
      return input.number(3) % (PciRoot::kEcamSize - 7);
  }
}

/// In a BAR where that lies now, or anywhere.
std::uint64_t Board::pick_memory(FuzzInput& input, std::uint8_t what) {
  const unsigned bar = (what & 2U) == 0 ? 0 : 2;
  PciFunction& function = transports_[what & 1U]->function();
  const std::optional<std::uint64_t> address = function.bar_address(bar);
  const std::uint64_t offset = input.number(2);
  const bool in_bar = address && *address >= kWindow;
  return (in_bar ? *address - kWindow + offset % function.bar(bar).size : offset) %
         (kWindowSize - 7);
}

void Board::access(FuzzInput& input, BusDevice& device, std::uint64_t offset, std::uint8_t what) {
  std::array<std::byte, 8> bytes = {};
  const std::span data = std::span(bytes).first(std::size_t{1} << ((what >> 2) & 3U));
  if ((what & 0x10) != 0) {
    input.fill(data);
    device.write(offset, data);
  } else {
    device.read(offset, data);
  }
}

void Board::move_bar(FuzzInput& input, std::uint8_t what) {
  const std::uint64_t config = config_of(what & 1U);
  const unsigned bar = (what & 2U) == 0 ? 0 : 2;
  const std::uint64_t address = kWindow - kBarStep + kBarStep * (input.byte() % 68U);
  store<std::uint16_t>(root_.ecam(), config + PCI_COMMAND, PCI_COMMAND_MEMORY);
  store<std::uint64_t>(root_.ecam(), config + PCI_BASE_ADDRESS_0 + std::uint64_t{4} * bar, address);
}

/// What a driver does up to DRIVER_OK, so that a few bytes of input lead to a device in use.
void Board::begin(unsigned which) {
  BusDevice& bar = *transports_[which];
  constexpr std::uint8_t kAlive = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
  store<std::uint8_t>(bar, VIRTIO_PCI_COMMON_STATUS, kAlive);
  store<std::uint32_t>(bar, VIRTIO_PCI_COMMON_GFSELECT, 1);
  store<std::uint32_t>(bar, VIRTIO_PCI_COMMON_GF, 1);  // VIRTIO_F_VERSION_1
  store<std::uint8_t>(bar, VIRTIO_PCI_COMMON_STATUS, kAlive | VIRTIO_CONFIG_S_FEATURES_OK);
  const std::uint32_t ring = 0x1000 + 0x4000 * which;
  store<std::uint32_t>(bar, VIRTIO_PCI_COMMON_Q_DESCLO, ring);
  store<std::uint32_t>(bar, VIRTIO_PCI_COMMON_Q_AVAILLO, ring + 0x1000);
  store<std::uint32_t>(bar, VIRTIO_PCI_COMMON_Q_USEDLO, ring + 0x2000);
  store<std::uint16_t>(bar, VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  store<std::uint8_t>(bar, VIRTIO_PCI_COMMON_STATUS,
                      kAlive | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

void Board::step(FuzzInput& input) {
  const std::uint8_t what = input.byte();
  switch (what >> 5) {
    case 0:
    case 1:
    case 2:
      access(input, root_.ecam(), pick_config(input, what), what);
      break;
    case 3:
    case 4:
      access(input, root_.mmio(), pick_memory(input, what), what);
      break;
    case 5:
      move_bar(input, what);
      break;
    case 6: {
      std::array<std::byte, 16> bytes = {};
      const std::uint64_t at = input.number(2) % (kMemorySize - bytes.size());
      input.fill(bytes);
      CHECK(host_.memory->write(GuestAddress(at), bytes));
      break;
    }
    default:
      if ((what & 2U) == 0) {
        begin(what & 1U);
      } else {
        transports_[what & 1U]->core().publish_config({});
      }
      break;
  }
}

void Board::check() {
  for (unsigned i = 0; i < kSlots.size(); ++i) {
    CHECK(load<std::uint32_t>(config_of(i)) == 0x10441af4);
    CHECK(load<std::uint8_t>(config_of(i) + PCI_INTERRUPT_PIN) == 0);
    check_doorbell(i);
  }
}

/// It hangs in its own BAR 0, or nowhere; that of the lowest slot wherever the BAR is in the
/// window.
void Board::check_doorbell(unsigned which) {
  const PciFunction& function = transports_[which]->function();
  const std::optional<std::uint64_t> bar = function.bar_address(0);
  const PciFunction::Doorbell& doorbell = function.doorbells()[0];
  const bool in_window =
      bar && *bar >= kWindow && *bar - kWindow <= kWindowSize - function.bar(0).size;
  const bool found = std::ranges::any_of(
      pci_host_.attached, [&](const auto& attached) { return attached.second == doorbell.fd; });
  if (found) {
    const auto there = pci_host_.attached.find(GuestAddress(bar.value_or(0) + doorbell.offset));
    CHECK(in_window && there != pci_host_.attached.end() && there->second == doorbell.fd);
  }
  CHECK(found || which != 0 || !in_window);
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Guests may fill a log; a fuzzer's terminal needs not.
  static const bool quiet = vireo::open_log({.level = vireo::LogLevel::kOff}).has_value();
  CHECK(quiet);
  static vireo::FuzzHost host(vireo::kMemorySize);
  vireo::FuzzInput input(data, size);
  vireo::Board board(host);
  while (!input.empty()) {
    board.step(input);
    board.check();
  }
  return 0;
}
