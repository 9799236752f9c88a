// SPDX-License-Identifier: Apache-2.0
#include "src/base/fd.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/support/catch.h"

namespace vireo {
namespace {

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

UniqueFd memory_file(std::string_view text = {}) {
  UniqueFd file(::memfd_create("test", MFD_CLOEXEC));
  REQUIRE(file);
  REQUIRE(::pwrite(file.get(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
  return file;
}

TEST_CASE("fd: closed once, by its last owner") {
  const int number = memory_file().release();
  REQUIRE(is_open(number));
  {
    UniqueFd first(number);
    UniqueFd second(std::move(first));
    CHECK(first.get() == -1);  // NOLINT(*-use-after-move,*-cplusplus.Move): it is empty
    CHECK_FALSE(first);
    CHECK(second.get() == number);
    UniqueFd third = memory_file();
    const int replaced = third.get();
    third = std::move(second);
    CHECK_FALSE(is_open(replaced));
    CHECK(third.get() == number);
    UniqueFd& same = third;
    third = std::move(same);
    CHECK(is_open(number));
  }
  CHECK_FALSE(is_open(number));

  UniqueFd reset = memory_file();
  const int closed = reset.get();
  reset.reset();
  CHECK_FALSE(reset);
  CHECK_FALSE(is_open(closed));
  reset.reset();
}

TEST_CASE("fd: open_file closes at exec, and names the path") {
  const Result<UniqueFd> file = open_file("/dev/null", O_RDONLY);
  REQUIRE(file.has_value());
  CHECK((::fcntl(file->get(), F_GETFD) & FD_CLOEXEC) != 0);
  const Result<UniqueFd> missing = open_file("/nonexistent/file", O_RDONLY);
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().code() == ErrorCode::kMissingInput);
  CHECK(missing.error().message() == "/nonexistent/file: No such file or directory");
}

TEST_CASE("fd: an eventfd counts, and a read of it waits") {
  const Result<UniqueFd> event = create_eventfd();
  REQUIRE(event.has_value());
  CHECK((::fcntl(event->get(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK((::fcntl(event->get(), F_GETFL) & O_NONBLOCK) == 0);
  signal_eventfd(event->get());
  signal_eventfd(event->get());
  std::uint64_t count = 0;
  REQUIRE(::read(event->get(), &count, sizeof(count)) == sizeof(count));
  CHECK(count == 2);
  std::thread other([&event] { signal_eventfd(event->get()); });
  REQUIRE(::read(event->get(), &count, sizeof(count)) == sizeof(count));
  other.join();
  CHECK(count == 1);
}

TEST_CASE("fd: read_full_at reads all, or says that the file ends too early") {
  const UniqueFd file = memory_file("0123456789");
  std::array<char, 4> buffer = {};
  REQUIRE(read_full_at(file.get(), std::as_writable_bytes(std::span(buffer)), 6).has_value());
  CHECK(std::string_view(buffer.data(), buffer.size()) == "6789");
  const Result<> beyond = read_full_at(file.get(), std::as_writable_bytes(std::span(buffer)), 7);
  REQUIRE_FALSE(beyond.has_value());
  CHECK(beyond.error().code() == ErrorCode::kBadInput);
  CHECK(read_full_at(file.get(), {}, 1000).has_value());
  CHECK(read_full_at(-1, std::as_writable_bytes(std::span(buffer)), 0).error().errnum() == EBADF);
}

TEST_CASE("fd: small files of /proc and /sys") {
  const Result<std::string> name = read_small_text(AT_FDCWD, "/proc/self/comm");
  REQUIRE(name);
  CHECK(!name->empty());
  CHECK_FALSE(name->ends_with('\n'));
  const Result<UniqueFd> proc = open_file("/proc", O_RDONLY | O_DIRECTORY);
  REQUIRE(proc);
  CHECK(read_small_text(proc->get(), "self/comm") == *name);
  REQUIRE_FALSE(read_small_text(AT_FDCWD, "/proc/self/no-such-file"));
  CHECK(read_small_text(AT_FDCWD, "/proc").error().message() == "/proc: Is a directory");
}

TEST_CASE("fd: write_full writes all, in as many calls as that takes") {
  // A socket takes less at once than this, so that the reader has to make room.
  constexpr std::size_t kSize = std::size_t{1} << 20;
  std::array<int, 2> ends = {};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const UniqueFd out(ends[0]);
  const UniqueFd in(ends[1]);
  std::string text(kSize, '\0');
  for (std::size_t i = 0; i < kSize; ++i) {
    text[i] = static_cast<char>(i * 7 % 251);
  }
  std::string got;
  std::thread reader([&] {
    std::array<char, 3000> buffer = {};
    while (got.size() < kSize) {
      const ssize_t count = ::read(out.get(), buffer.data(), buffer.size());
      if (count <= 0) {
        return;
      }
      got.append(buffer.data(), static_cast<std::size_t>(count));
    }
  });
  const Result<> written = write_full(in.get(), std::as_bytes(std::span(text)));
  reader.join();
  CHECK(written.has_value());
  CHECK(got == text);

  const Result<UniqueFd> full = open_file("/dev/full", O_WRONLY);
  REQUIRE(full.has_value());
  CHECK(write_full(full->get(), std::as_bytes(std::span(text))).error().errnum() == ENOSPC);
}

TEST_CASE("fd: the size of a regular file, and of nothing else") {
  CHECK(regular_file_size(memory_file("12345").get()) == 5U);
  for (const char* path : {"/", "/dev/null"}) {
    const Result<UniqueFd> other = open_file(path, O_RDONLY);
    REQUIRE(other.has_value());
    const Result<std::uint64_t> size = regular_file_size(other->get());
    REQUIRE_FALSE(size.has_value());
    CHECK(size.error().code() == ErrorCode::kBadInput);
  }
  CHECK(regular_file_size(-1).error().errnum() == EBADF);
}

TEST_CASE("fd: text goes to files, pipes, devices and connected sockets only") {
  std::array<int, 2> ends = {};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const UniqueFd out(ends[0]);
  const UniqueFd in(ends[1]);
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  const UniqueFd left(ends[0]);
  const UniqueFd right(ends[1]);
  const Result<UniqueFd> null = open_file("/dev/null", O_WRONLY);
  REQUIRE(null.has_value());
  const UniqueFd file = memory_file();
  for (const int good : {file.get(), in.get(), left.get(), null->get()}) {
    CHECK(check_takes_text(good).has_value());
  }
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;  // no path: the kernel picks an abstract name
  REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  const Result<UniqueFd> directory = open_file("/", O_RDONLY);
  REQUIRE(directory.has_value());
  for (const int bad : {listener.get(), directory->get()}) {
    const Result<> refused = check_takes_text(bad);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code() == ErrorCode::kConfig);
  }
  CHECK(check_takes_text(-1).error().errnum() == EBADF);
}

TEST_CASE("fd: try_ioctl gives the result, or an error that says what was tried") {
  const UniqueFd file = memory_file("12345");
  int left = 0;
  const Result<int> result = try_ioctl(file.get(), FIONREAD, &left, "FIONREAD");
  REQUIRE(result.has_value());
  CHECK(left == 5);
  const Result<int> failed = try_ioctl(-1, FIONREAD, &left, "FIONREAD");
  REQUIRE_FALSE(failed.has_value());
  CHECK(failed.error().message() == "FIONREAD: Bad file descriptor");
}

const std::size_t kPage = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));

/// Whether the page at `address` is mapped.
bool is_mapped(const std::byte* address) {
  unsigned char state = 0;
  // mincore() takes no pointer to const, and changes nothing.
  return ::mincore(const_cast<std::byte*>(address), kPage, &state) == 0;  // NOLINT(*-const-cast)
}

Mapping anonymous(std::size_t pages) {
  auto mapping = Mapping::create(pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                 -1, 0, "test");
  REQUIRE(mapping.has_value());
  return std::move(*mapping);
}

TEST_CASE("mapping: unmapped once, by its last owner") {
  std::byte* data = nullptr;
  {
    Mapping first = anonymous(2);
    data = first.data();
    data[0] = std::byte{1};
    Mapping second(std::move(first));
    CHECK(first.data() == nullptr);  // NOLINT(*-use-after-move,*-cplusplus.Move): it is empty
    CHECK(first.size() == 0);
    CHECK(second.bytes().size() == 2 * kPage);
    Mapping third = anonymous(1);
    third = std::move(second);
    CHECK(third.data() == data);
    CHECK(is_mapped(data));
  }
  CHECK_FALSE(is_mapped(data));
}

TEST_CASE("mapping: a file at an offset, and an error that says what for") {
  const UniqueFd file = memory_file(std::string(kPage, 'a') + std::string(kPage, 'b'));
  const auto mapping = Mapping::create(kPage, PROT_READ, MAP_PRIVATE, file.get(), kPage, "image");
  REQUIRE(mapping.has_value());
  CHECK(mapping->bytes().front() == std::byte{'b'});
  const auto failed = Mapping::create(kPage, PROT_READ, MAP_PRIVATE, -1, 0, "image");
  REQUIRE_FALSE(failed.has_value());
  CHECK(failed.error().message() == "image: Bad file descriptor");
}

TEST_CASE("mapping: trim leaves the part that was asked for, and only that") {
  struct Part {
    std::size_t offset;
    std::size_t size;
  };
  for (const Part part : {Part{0, 8}, Part{0, 3}, Part{2, 3}, Part{5, 3}, Part{7, 1}, Part{0, 1}}) {
    Mapping mapping = anonymous(8);
    std::byte* const start = mapping.data();
    for (std::size_t page = 0; page < 8; ++page) {
      start[page * kPage] = static_cast<std::byte>(page + 1);
    }
    mapping.trim(part.offset * kPage, part.size * kPage);
    CHECK(mapping.data() == start + part.offset * kPage);
    CHECK(mapping.size() == part.size * kPage);
    CHECK(mapping.bytes().front() == static_cast<std::byte>(part.offset + 1));
    for (std::size_t page = 0; page < 8; ++page) {
      CHECK(is_mapped(start + page * kPage) ==
            (page >= part.offset && page < part.offset + part.size));
    }
    mapping = Mapping();
    CHECK_FALSE(is_mapped(start + part.offset * kPage));
  }
}

}  // namespace
}  // namespace vireo
