// SPDX-License-Identifier: Apache-2.0
#include "src/memory/guest_memory.h"

#include <array>
#include <cstring>
#include <string>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "src/memory/bus_error.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

GuestRange range(std::uint64_t start, std::uint64_t size) {
  return *GuestRange::create(GuestAddress(start), size);
}

std::unique_ptr<GuestMemory> two_regions(const GuestMemoryConfig& config = {}) {
  const std::array ranges = {range(0, 4 * kMiB), range(std::uint64_t{4} << 30, 2 * kMiB)};
  auto memory = GuestMemory::create(ranges, config);
  REQUIRE(memory.has_value());
  return std::move(*memory);
}

TEST_CASE("guest memory: pages that are present are counted") {
  for (const bool shared : {false, true}) {
    const auto memory = two_regions({.shared = shared});
    CHECK(memory->resident_pages() == 0);
    REQUIRE(memory->write_object(GuestAddress(kMiB), std::uint8_t{1}));
    REQUIRE(memory->write_object(GuestAddress(kMiB + 4095), std::uint8_t{1}));
    REQUIRE(memory->write_object(GuestAddress(std::uint64_t{4} << 30), std::uint8_t{1}));
    CHECK(memory->resident_pages() == 2);
    memory->populate(GuestAddress(0), 16UL * 4096);
    CHECK(memory->resident_pages() == 18);
  }
}

TEST_CASE("guest memory: copies reach their region and nothing else") {
  for (const bool shared : {false, true}) {
    const auto memory = two_regions({.shared = shared});
    CHECK(memory->size() == 6 * kMiB);
    CHECK(memory->end() == GuestAddress((std::uint64_t{4} << 30) + 2 * kMiB));
    const GuestAddress high((std::uint64_t{4} << 30) + 8);
    REQUIRE(memory->write_object(high, std::uint64_t{0x1122334455667788}));
    CHECK(memory->read_object<std::uint64_t>(high) == 0x1122334455667788);
    CHECK(memory->read_object<std::uint64_t>(GuestAddress(8)) == 0);
  }
}

TEST_CASE("guest memory: what is not wholly inside one region is refused") {
  const auto memory = two_regions();
  const std::uint64_t end = 4 * kMiB;
  CHECK(memory->slice(GuestAddress(end - 8), 8).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(end - 8), 9).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(end), 1).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(0), end + 1).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(std::uint64_t{4} << 30), ~std::uint64_t{0}).has_value());
  CHECK_FALSE(memory->slice(GuestAddress(~std::uint64_t{0}), 2).has_value());
  std::array<std::byte, 16> bytes = {};
  CHECK_FALSE(memory->write(GuestAddress(end - 8), bytes));
  CHECK_FALSE(memory->read(GuestAddress(end - 8), bytes));
}

TEST_CASE("guest memory: host and guest addresses are congruent modulo 2 MiB") {
  for (int i = 0; i < 8; ++i) {
    const auto memory = two_regions();
    for (const GuestMemory::Region& region : memory->regions()) {
      const auto host = reinterpret_cast<std::uint64_t>(region.host.data());
      CHECK(host % (2 * kMiB) == region.range.start().value() % (2 * kMiB));
    }
  }
}

TEST_CASE("guest memory: populate makes exactly the asked pages present") {
  const auto memory = two_regions();
  memory->populate(GuestAddress(kMiB + 100), 5000);  // touches two pages
  std::array<unsigned char, 4 * kMiB / 4096> present = {};
  REQUIRE(::mincore(memory->regions()[0].host.data(), 4 * kMiB, present.data()) == 0);
  std::size_t count = 0;
  for (const unsigned char page : present) {
    count += page & 1U;
  }
  CHECK(count == 2);
  CHECK((present[256] & 1U) == 1);
  memory->populate(GuestAddress(64 * kMiB), 5000);  // outside: nothing happens
}

TEST_CASE("guest memory: a tebibyte is only address space") {
  const std::array ranges = {range(0, std::uint64_t{3} << 30),
                             range(std::uint64_t{4} << 30, std::uint64_t{1021} << 30)};
  const auto memory = GuestMemory::create(ranges, {});
  REQUIRE(memory.has_value());
  CHECK((*memory)->write_object(GuestAddress((std::uint64_t{1024} << 30)), 1));
}

TEST_CASE("guest memory: huge pages that are not to be had are named") {
  const std::array ranges = {range(0, std::uint64_t{64} << 30)};
  const auto memory = GuestMemory::create(ranges, {.huge_pages = HugePages::k2M});
  REQUIRE_FALSE(memory.has_value());
  CHECK(memory.error().code() == ErrorCode::kSystem);
  CHECK(memory.error().message().find("machine.hugepages") != std::string::npos);

  const std::array odd = {range(0, 3 * kMiB)};
  const auto refused = GuestMemory::create(odd, {.huge_pages = HugePages::k2M});
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code() == ErrorCode::kConfig);
}

/// Runs `body` in a child whose stderr is read back; returns the wait status.
template <typename Body>
int in_child(std::string& output, Body body) {
  std::array<int, 2> pipe_ends = {};
  REQUIRE(::pipe(pipe_ends.data()) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(pipe_ends[1], STDERR_FILENO);
    body();
    ::_exit(0);
  }
  ::close(pipe_ends[1]);
  std::array<char, 512> buffer = {};
  ssize_t count = 0;
  while ((count = ::read(pipe_ends[0], buffer.data(), buffer.size())) > 0) {
    output.append(buffer.data(), static_cast<std::size_t>(count));
  }
  ::close(pipe_ends[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

TEST_CASE("bus error: in guest memory it is one line and status 71") {
  std::string output;
  const int status = in_child(output, [] {
    const auto memory = two_regions();
    // A file that is shorter than its mapping stands for memory that the host cannot provide.
    const int file = ::memfd_create("short", 0);
    const void* const mapped = ::mmap(memory->regions()[0].host.data(), 4096,
                                      PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    if (mapped == MAP_FAILED || !watch_bus_errors(*memory, nullptr)) {
      ::_exit(1);
    }
    std::memset(memory->regions()[0].host.data(), 1, 1);
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 71);
  CHECK(output.starts_with("vireo: guest memory: "));
  CHECK(output.find('\n') == output.size() - 1);
}

TEST_CASE("bus error: anywhere else it is still fatal") {
  std::string output;
  const int status = in_child(output, [] {
    const auto memory = two_regions();
    const int file = ::memfd_create("short", 0);
    void* const other = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (!watch_bus_errors(*memory, nullptr)) {
      ::_exit(1);
    }
    std::memset(other, 1, 1);
  });
  CHECK(WIFSIGNALED(status));
}

}  // namespace
}  // namespace vireo
