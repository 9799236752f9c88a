// SPDX-License-Identifier: Apache-2.0
#include "src/io/ring.h"

#include <array>
#include <memory>
#include <vector>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "src/base/fd.h"
#include "tests/io/reactor_fixture.h"

namespace vireo {
namespace {

TEST_CASE("ring: reads wait for their bytes, and a cancelled one completes") {
  for (const RingFeatures& features : kFeatureSets) {
    const auto reactor = started({.features = features});
    std::array<int, 2> ends = {};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    const UniqueFd out(ends[0]);
    const UniqueFd in(ends[1]);
    std::array<std::byte, 8> buffer = {};

    Probe read(*reactor);
    reactor->ring().prep_read(read.op, out.get(), buffer, Ring::kNoOffset);
    Probe write(*reactor, 0);
    reactor->ring().prep_write(write.op, in.get(), std::as_bytes(std::span("hi", 2)),
                               Ring::kNoOffset);
    REQUIRE(reactor->run().has_value());
    REQUIRE(read.results.size() == 1);
    CHECK(read.results[0].result == 2);
    REQUIRE(reactor->drain(1000 * kMillisecond));

    const auto second = started({.features = features});
    Probe cancelled(*second);
    second->ring().prep_read(cancelled.op, out.get(), buffer, Ring::kNoOffset);
    CHECK_FALSE(second->drain(5 * kMillisecond));
    second->ring().cancel(cancelled.op);
    CHECK(second->drain(1000 * kMillisecond));
    REQUIRE(cancelled.results.size() == 1);
    CHECK((cancelled.results[0].result == -ECANCELED || cancelled.results[0].result == -EINTR));
  }
}

TEST_CASE("ring: more operations than the submission queue holds") {
  const auto reactor = started({.entries = 4});
  std::array<std::byte, 1> byte = {};
  const auto zero = open_file("/dev/zero", O_RDONLY);
  REQUIRE(zero.has_value());
  std::vector<std::unique_ptr<Probe>> probes;
  for (int i = 0; i < 100; ++i) {
    probes.push_back(std::make_unique<Probe>(*reactor, 0));
    reactor->ring().prep_read(probes.back()->op, zero->get(), byte, 0);
  }
  REQUIRE(reactor->drain(5000 * kMillisecond));
  for (const auto& probe : probes) {
    REQUIRE(probe->results.size() == 1);
    CHECK(probe->results[0].result == 1);
  }
}

TEST_CASE("ring: an asynchronous write, with and without restrictions") {
  const std::array<std::uint8_t, 3> some = {IORING_OP_WRITE, IORING_OP_POLL_ADD,
                                            IORING_OP_ASYNC_CANCEL};
  for (const std::span<const std::uint8_t> allowed : {std::span<const std::uint8_t>(some), {}}) {
    const auto reactor = started({.allowed_opcodes = allowed});
    std::array<int, 2> ends = {};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    const UniqueFd out(ends[0]);
    const UniqueFd in(ends[1]);
    Probe write(*reactor);
    reactor->ring().prep_write_async(write.op, in.get(), std::as_bytes(std::span("hi", 2)),
                                     Ring::kNoOffset);
    REQUIRE(reactor->run().has_value());
    REQUIRE(write.results.size() == 1);
    CHECK(write.results[0].result == 2);
  }
}

TEST_CASE("ring: an opcode that is not allowed is refused") {
  const std::array<std::uint8_t, 3> allowed = {IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL,
                                               IORING_OP_TIMEOUT};
  const auto reactor = started({.allowed_opcodes = allowed});
  const auto null = open_file("/dev/null", O_WRONLY);
  REQUIRE(null.has_value());
  Probe write(*reactor);
  reactor->ring().prep_write(write.op, null->get(), std::as_bytes(std::span("x", 1)), 0);
  REQUIRE(reactor->run().has_value());
  REQUIRE(write.results.size() == 1);
  CHECK(write.results[0].result == -EACCES);
}

TEST_CASE("ring: each time an eventfd is counted up is seen, with and without multishot") {
  for (const bool multishot : {true, false}) {
    const auto reactor = started({.features = {.multishot = multishot}});
    const auto eventfd = create_eventfd();
    REQUIRE(eventfd.has_value());
    struct Watcher {
      void on_event(Op& watch, Completion completion) {
        ++events;
        stays_armed = (completion.flags & IORING_CQE_F_MORE) != 0;
        if (completion.result > 0 && !stays_armed) {
          ring.prep_eventfd(watch, fd, count);
        }
      }
      Ring& ring;
      int fd;
      Op op = {};
      std::uint64_t count = 0;
      int events = 0;
      bool stays_armed = false;
    } watcher{.ring = reactor->ring(), .fd = eventfd->get()};
    watcher.op.bind<Watcher, &Watcher::on_event>(&watcher);
    signal_eventfd(eventfd->get());  // before it is watched
    reactor->ring().prep_eventfd(watcher.op, eventfd->get(), watcher.count);
    for (int seen = 1; seen <= 3; ++seen) {
      CHECK(reactor->run_until([&] { return watcher.events >= seen; }, 10'000 * kMillisecond));
      CHECK(watcher.stays_armed == multishot);
      CHECK_FALSE(reactor->drain(5 * kMillisecond));
      CHECK(watcher.events == seen);  // and none for nothing
      signal_eventfd(eventfd->get());
    }
    CHECK(reactor->run_until([&] { return watcher.events == 4; }, 10'000 * kMillisecond));
    reactor->ring().cancel(watcher.op);
    CHECK(reactor->drain(10'000 * kMillisecond));
    CHECK(watcher.events == 5);
  }
}

TEST_CASE("ring: accept goes on, with and without multishot") {
  for (const bool multishot : {true, false}) {
    const auto reactor = started({.features = {.multishot = multishot}});
    const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;  // no path: the kernel picks an abstract name
    REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(sa_family_t)) ==
            0);
    socklen_t length = sizeof(address);
    REQUIRE(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
    REQUIRE(::listen(listener.get(), 4) == 0);
    struct Acceptor {
      void on_accept(Op& accepted, Completion completion) {
        if (completion.result < 0) {
          return;
        }
        clients.emplace_back(completion.result);
        if (clients.size() == 2) {
          reactor.stop();
        } else if ((completion.flags & IORING_CQE_F_MORE) == 0) {
          reactor.ring().prep_accept(accepted, listener);
        }
      }
      Reactor& reactor;
      int listener;
      Op op = {};
      std::vector<UniqueFd> clients = {};
    } acceptor{.reactor = *reactor, .listener = listener.get()};
    acceptor.op.bind<Acceptor, &Acceptor::on_accept>(&acceptor);
    reactor->ring().prep_accept(acceptor.op, listener.get());
    std::array<UniqueFd, 2> clients;
    for (UniqueFd& client : clients) {
      client = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
      REQUIRE(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
    }
    REQUIRE(reactor->run().has_value());
    CHECK(acceptor.clients.size() == 2);
    for (const UniqueFd& client : acceptor.clients) {
      CHECK((::fcntl(client.get(), F_GETFD) & FD_CLOEXEC) != 0);
    }
    reactor->ring().cancel(acceptor.op);
    CHECK(reactor->drain(1000 * kMillisecond));
  }
}

}  // namespace
}  // namespace vireo
