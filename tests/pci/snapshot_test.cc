// SPDX-License-Identifier: Apache-2.0
// The bus with what is on it, saved and restored, also from bytes that nobody saved.
#include "src/snapshot/snapshot.h"

#include <string>
#include <vector>

#include "devices/pci/root.h"
#include "tests/support/catch.h"
#include "tests/support/fake_pci.h"
#include "tests/support/hostile_sections.h"

namespace vireo {
namespace {

constexpr std::uint64_t kWindow = 0xd0000000;
constexpr std::uint64_t kWindowSize = 0x10000;
constexpr unsigned kSlot = 4;
constexpr unsigned kBar = 0;
constexpr unsigned kMsixBar = 2;
constexpr std::uint64_t kBell = 0x800;

/// A bus with one function that has a BAR with a doorbell, and MSI-X.
struct Machine {
  explicit Machine(std::uint16_t device = 0x1041, unsigned vectors = 3)
      : msix(std::move(*Msix::create(vectors, router))),
        function({.vendor = 0x1af4, .device = device}) {
    function.add_bar(kBar, registers.bytes.size(), registers);
    function.add_doorbell({.bar = kBar, .offset = kBell, .width = 2, .fd = 77});
    function.add_msix(kMsixBar, *msix);
    REQUIRE(root.add(kSlot, function));
  }
  template <typename T>
  void config_write(std::uint64_t offset, T value) {
    store<T>(root.ecam(), (std::uint64_t{kSlot} << 15) + offset, value);
  }
  template <typename T>
  T config_read(std::uint64_t offset) {
    return load<T>(root.ecam(), (std::uint64_t{kSlot} << 15) + offset);
  }
  void move(unsigned bar, std::uint64_t address) {
    config_write(PCI_BASE_ADDRESS_0 + std::uint64_t{4} * bar, static_cast<std::uint32_t>(address));
  }
  unsigned msix_capability() {
    unsigned at = config_read<std::uint8_t>(PCI_CAPABILITY_LIST);
    while (at != 0 && config_read<std::uint8_t>(at) != PCI_CAP_ID_MSIX) {
      at = config_read<std::uint8_t>(at + PCI_CAP_LIST_NEXT);
    }
    return at;
  }
  void set_control(std::uint16_t control) {
    config_write(msix_capability() + std::uint64_t{PCI_MSIX_FLAGS}, control);
  }
  /// Vector `index` sends 0x40 + index.
  void program(unsigned index, bool masked) const {
    const std::uint64_t entry = std::uint64_t{index} * PCI_MSIX_ENTRY_SIZE;
    store<std::uint32_t>(*msix, entry + PCI_MSIX_ENTRY_LOWER_ADDR, 0xfee01000);
    store<std::uint32_t>(*msix, entry + PCI_MSIX_ENTRY_UPPER_ADDR, index);
    store<std::uint32_t>(*msix, entry + PCI_MSIX_ENTRY_DATA, 0x40 + index);
    mask(index, masked);
  }
  void mask(unsigned index, bool masked) const {
    store<std::uint32_t>(*msix,
                         std::uint64_t{index} * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL,
                         masked ? PCI_MSIX_ENTRY_CTRL_MASKBIT : 0);
  }
  std::uint64_t pending() { return load<std::uint64_t>(*msix, msix->pba_offset()); }

  FakePciHost host;
  FakeMsiRouter router;
  FakeRegisters registers{std::byte{0x5a}};
  PciRoot root{*GuestRange::create(GuestAddress(kWindow), kWindowSize), host};
  std::unique_ptr<Msix> msix;
  PciFunction function;
};

/// As a guest leaves it: BARs moved and on, a vector open, one masked with something behind it.
void use(Machine& m) {
  m.move(kBar, kWindow + 0x8000);
  m.move(kMsixBar, kWindow + 0xc000);
  m.config_write<std::uint16_t>(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  m.config_write<std::uint8_t>(PCI_INTERRUPT_LINE, 11);
  store<std::uint8_t>(m.root.ecam(), PCI_CACHE_LINE_SIZE, 64);  // of the host bridge
  m.set_control(PCI_MSIX_FLAGS_ENABLE);
  m.program(0, false);
  m.program(1, true);
  m.msix->raise(0);
  m.msix->raise(1);
}

std::vector<std::vector<std::byte>> bytes_of(const SnapshotWriter& writer) {
  std::vector<std::vector<std::byte>> all;
  for (const SnapshotSection& section : writer.sections()) {
    all.emplace_back(section.bytes.begin(), section.bytes.end());
  }
  return all;
}

Result<> restore(Machine& m, std::span<const SnapshotSection> sections) {
  TRY_ASSIGN(SnapshotReader reader, SnapshotReader::create(sections));
  TRY(m.root.restore(reader));
  return reader.finish();
}

TEST_CASE("pci snapshot: BARs, doorbells and vectors are as they were") {
  Machine old;
  use(old);
  SnapshotWriter saved;
  old.root.save(saved);

  Machine m;
  REQUIRE(restore(m, saved.sections()));
  CHECK(m.config_read<std::uint16_t>(PCI_COMMAND) == (PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER));
  CHECK(m.config_read<std::uint8_t>(PCI_INTERRUPT_LINE) == 11);
  CHECK(load<std::uint8_t>(m.root.ecam(), PCI_CACHE_LINE_SIZE) == 64);
  CHECK(load<std::uint8_t>(m.root.mmio(), 0x8000) == 0x5a);
  CHECK(m.host.fd_at(kWindow + 0x8000 + kBell, 2) == 77);
  CHECK(load<std::uint32_t>(m.root.mmio(), 0xc000 + PCI_MSIX_ENTRY_DATA) == 0x40);

  // The open one may have been on its way, and comes again; the other waits for its mask.
  CHECK(m.router.route_of(0).address == 0xfee01000);
  CHECK(m.router.messages(0x40) == 1);
  CHECK(m.router.messages(0x41) == 0);
  CHECK(m.pending() == 1U << 1);
  SnapshotWriter again;
  m.root.save(again);
  CHECK(bytes_of(again) == bytes_of(saved));

  m.mask(1, false);
  CHECK(m.router.route_of(1).address == 0x1'fee0'1000);
  CHECK(m.router.messages(0x41) == 1);
  m.msix->raise(0);
  CHECK(m.router.messages(0x40) == 2);
  m.msix->raise(2);  // masked, as every vector that was never written
  CHECK(m.pending() == 1U << 2);

  // A reset of the machine still finds what firmware had made.
  m.root.power_cycle();
  CHECK(m.config_read<std::uint16_t>(PCI_COMMAND) == 0);
  CHECK(m.config_read<std::uint32_t>(PCI_BASE_ADDRESS_0) ==
        (kWindow | PCI_BASE_ADDRESS_MEM_TYPE_64));
}

TEST_CASE("pci snapshot: a control word that closes all gates") {
  for (const int control : {0, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL}) {
    Machine old;
    use(old);
    old.set_control(static_cast<std::uint16_t>(control));
    old.msix->raise(0);
    SnapshotWriter saved;
    old.root.save(saved);
    Machine m;
    REQUIRE(restore(m, saved.sections()));
    CHECK(m.router.told() == 0);
    CHECK(m.pending() == old.pending());
    m.set_control(PCI_MSIX_FLAGS_ENABLE);
    CHECK(m.router.messages(0x40) == (control == 0 ? 0 : 1));
  }
}

TEST_CASE("pci snapshot: of another function, or of none that can be") {
  Machine old;
  use(old);
  SnapshotWriter saved;
  old.root.save(saved);
  const auto problem = [&saved](Machine& m, unsigned section = 0, std::size_t at = 0,
                                std::byte flip = {}) {
    HostileSections hostile(saved.sections());
    hostile.bytes(section).at(at) ^= flip;
    const Result<> done = restore(m, hostile.sections());
    return done ? std::string("none") : done.error().message();
  };
  Machine other(0x1042);
  CHECK(problem(other) == "section pci 4: is of another function than is here: byte 0x2 differs");
  Machine larger(0x1041, 4);
  CHECK(problem(larger).starts_with("section pci 4: is of another function"));
  REQUIRE(saved.sections()[2].tag == "msix");

  // Sections: the bridge's space, the function's, its vectors: a count and 14 bytes for each.
  Machine m;
  constexpr unsigned kVectors = 2;
  CHECK(problem(m, kVectors, 0, std::byte{1}).starts_with("section msix 4: "));
  CHECK(problem(m, kVectors, 4, std::byte{1}) ==
        "section msix 4: has a vector that sends to an odd address");
  CHECK(problem(m, kVectors, 4 + 13, std::byte{1}) ==
        "section msix 4: has a vector that waits behind no mask");
  HostileSections fewer(saved.sections());
  fewer.bytes(kVectors).resize(4 + 2 * 14);
  fewer.bytes(kVectors)[0] = std::byte{2};
  const Result<> done = restore(m, fewer.sections());
  REQUIRE_FALSE(done);
  CHECK(done.error().message() == "section msix 4: has 2 vectors, and the function here 3");
  // All that was refused has left nothing behind.
  CHECK(m.config_read<std::uint16_t>(PCI_COMMAND) == 0);
  CHECK(m.config_read<std::uint8_t>(PCI_INTERRUPT_LINE) == 0);
  CHECK(load<std::uint8_t>(m.root.ecam(), PCI_CACHE_LINE_SIZE) == 0);
  CHECK(m.host.count() == 0);
  CHECK(m.router.told() == 0);
  REQUIRE(restore(m, saved.sections()));

  Machine two;
  PciFunction more({.vendor = 0x1af4, .device = 0x1041});
  REQUIRE(two.root.add(9, more));
  CHECK(problem(two) == "section pci 9: is missing");
}

TEST_CASE("pci snapshot: every bit of it flipped, every length of it") {
  Machine old;
  use(old);
  SnapshotWriter saved;
  old.root.save(saved);
  unsigned accepted = 0;
  const auto try_it = [&accepted](std::span<const SnapshotSection> sections) {
    Machine m;
    const bool restored = restore(m, sections).has_value();
    accepted += restored ? 1U : 0U;
    SnapshotWriter once;
    m.root.save(once);
    for (unsigned vector = 0; vector < m.msix->vectors(); ++vector) {
      m.msix->raise(vector);
      m.mask(vector, false);
    }
    load<std::uint32_t>(m.root.mmio(), 0x8000);
    m.root.power_cycle();
    // What a machine is restored to is what it saves.
    Machine next;
    REQUIRE(restore(next, once.sections()));
    SnapshotWriter twice;
    next.root.save(twice);
    REQUIRE(bytes_of(twice) == bytes_of(once));
    return restored;
  };
  for_each_flip(saved.sections(), try_it);
  CHECK(accepted > 100);  // addresses, messages, notes of the guest
  accepted = 0;
  for_each_length(saved.sections(), try_it);
  CHECK(accepted == 0);
}

}  // namespace
}  // namespace vireo
