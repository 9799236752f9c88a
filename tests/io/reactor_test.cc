// SPDX-License-Identifier: Apache-2.0
#include "src/io/reactor.h"

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <string_view>
#include <thread>
#include <vector>

#include <unistd.h>

#include "src/base/log.h"
#include "src/io/signals.h"
#include "tests/io/reactor_fixture.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

/// Stops its reactor when it has counted to a target.
struct Counter {
  Counter(Reactor& on, int until) : reactor(on), target(until) {
    task.bind<Counter, &Counter::count>(this);
  }
  void count() {
    if (++value == target) {
      reactor.stop();
    }
  }

  Reactor& reactor;
  int target;
  int value = 0;
  Task task;
};

TEST_CASE("reactor: tasks posted before and while it runs, with every set of features") {
  for (const RingFeatures& features : kFeatureSets) {
    const auto reactor = started({.features = features});
    Counter early(*reactor, 1);
    reactor->post(early.task);
    reactor->post(early.task);  // still waiting: runs once
    REQUIRE(reactor->run().has_value());
    CHECK(early.value == 1);
  }
}

/// A task that posts itself until it has run so often, and keeps a common record.
struct Again {
  Again(Reactor& on, std::vector<int>& log, int number, int runs)
      : reactor(on), record(log), id(number), left(runs) {
    task.bind<Again, &Again::run>(this);
  }
  void run() {
    record.push_back(id);
    if (--left > 0) {
      reactor.post(task);
    }
  }
  Reactor& reactor;
  std::vector<int>& record;
  int id;
  int left;
  Task task;
};

TEST_CASE("reactor: tasks run in the order of posting, and again when posted while they run") {
  const auto reactor = started({});
  std::vector<int> record;
  Again one(*reactor, record, 1, 3);
  Again two(*reactor, record, 2, 1);
  Again three(*reactor, record, 3, 2);
  reactor->post(one.task);
  reactor->post(two.task);
  reactor->post(three.task);
  CHECK(reactor->drain(1000 * kMillisecond));
  CHECK(record == std::vector<int>{1, 2, 3, 1, 3, 1});
}

TEST_CASE("reactor: drain gives up on tasks without end, too") {
  const auto reactor = started({});
  std::vector<int> record;
  Again forever(*reactor, record, 1, 1'000'000'000);
  reactor->post(forever.task);
  CHECK_FALSE(reactor->drain(5 * kMillisecond));
  forever.left = 1;
  CHECK(reactor->drain(1000 * kMillisecond));
}

TEST_CASE("reactor: a task posted to a loop that sleeps wakes it, each time") {
  auto reactor_result = Reactor::create({});
  REQUIRE(reactor_result.has_value());
  Reactor& reactor = **reactor_result;
  std::thread loop([&reactor] {
    if (reactor.start()) {
      CHECK(reactor.run().has_value());
      reactor.close();
    }
  });
  struct Flag {
    void set() { ++count; }
    std::atomic<int> count = 0;
  } flag;
  Task task;
  task.bind<Flag, &Flag::set>(&flag);
  for (int i = 1; i <= 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // asleep by now
    reactor.post(task);
    for (int tries = 0; tries < 1000 && flag.count < i; ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    CHECK(flag.count == i);
  }
  reactor.stop();
  loop.join();
}

TEST_CASE("reactor: four threads call, each call runs, and is waited for") {
  auto reactor_result = Reactor::create({});
  REQUIRE(reactor_result.has_value());
  Reactor& reactor = **reactor_result;
  std::thread loop([&reactor] {
    if (reactor.start()) {
      CHECK(reactor.run().has_value());
      CHECK(reactor.drain(1'000 * kMillisecond));
      reactor.close();
    }
  });
  struct Sum {
    void add() {
      ++total;
      call->finish();
    }
    Call* call = nullptr;
    int total = 0;
  };
  constexpr int kRounds = 500;
  std::array<Sum, 4> sums;
  std::vector<std::thread> posters;
  posters.reserve(sums.size());
  for (Sum& sum : sums) {
    posters.emplace_back([&reactor, &sum] {
      Call call;
      call.bind<Sum, &Sum::add>(&sum);
      sum.call = &call;
      for (int i = 0; i < kRounds && reactor.call_and_wait(call); ++i) {
      }
    });
  }
  for (std::thread& poster : posters) {
    poster.join();
  }
  reactor.stop();
  loop.join();
  for (const Sum& sum : sums) {
    CHECK(sum.total == kRounds);
  }
}

TEST_CASE("reactor: a call ends later than its task, or when calls are refused") {
  auto reactor_result = Reactor::create({});
  REQUIRE(reactor_result.has_value());
  Reactor& reactor = **reactor_result;
  std::thread loop([&reactor] {
    if (reactor.start()) {
      CHECK(reactor.run().has_value());
      CHECK(reactor.drain(1'000 * kMillisecond));
      reactor.close();
    }
  });
  struct Later {
    explicit Later(Reactor& reactor) : timer(reactor) {
      timer.bind<Later, &Later::expire>(this);
      call.bind<Later, &Later::begin>(this);
      silent.bind<Later, &Later::begin_silently>(this);
    }
    void begin() { timer.arm(20 * kMillisecond); }
    void expire() {
      expired = true;
      call.finish();
    }
    void begin_silently() { begun = true; }
    Timer timer;
    Call call;
    Call silent;  // never finished
    std::atomic<bool> expired = false;
    std::atomic<bool> begun = false;
  } later(reactor);
  CHECK(reactor.call_and_wait(later.call));
  CHECK(later.expired);

  std::thread refuser([&] {
    while (!later.begun) {
      std::this_thread::yield();
    }
    reactor.refuse_calls();
  });
  CHECK_FALSE(reactor.call_and_wait(later.silent));
  CHECK_FALSE(reactor.call_and_wait(later.call));
  refuser.join();
  reactor.stop();
  loop.join();
}

TEST_CASE("timer: fires in order, is moved, is cancelled") {
  const auto reactor = started({});
  std::vector<int> fired;
  struct Alarm {
    Alarm(Reactor& on, std::vector<int>& log, int number) : timer(on), fired(log), id(number) {
      timer.bind<Alarm, &Alarm::fire>(this);
    }
    void fire() { fired.push_back(id); }
    Timer timer;
    std::vector<int>& fired;
    int id;
  };
  Alarm late(*reactor, fired, 2);
  Alarm soon(*reactor, fired, 1);
  Alarm moved(*reactor, fired, 3);
  Alarm never(*reactor, fired, 4);
  late.timer.arm(20 * kMillisecond);
  soon.timer.arm(5 * kMillisecond);
  moved.timer.arm(1 * kMillisecond);
  moved.timer.arm(40 * kMillisecond);
  never.timer.arm(10 * kMillisecond);
  never.timer.cancel();
  CHECK(reactor->drain(5000 * kMillisecond));
  CHECK(fired == std::vector<int>{1, 2, 3});
}

TEST_CASE("timer: does not fire before its time, and can be armed by what it fires") {
  const auto reactor = started({});
  struct Repeat {
    explicit Repeat(Reactor& on) : timer(on) { timer.bind<Repeat, &Repeat::fire>(this); }
    void fire() {
      CHECK(monotonic_ns() >= due);
      CHECK_FALSE(timer.armed());
      if (++fired < 3) {
        arm(3 * kMillisecond);
      }
    }
    void arm(std::uint64_t after) {
      due = monotonic_ns() + after;
      timer.arm(after);
    }
    Timer timer;
    std::uint64_t due = 0;
    int fired = 0;
  } repeat(*reactor);
  repeat.arm(kMillisecond);
  repeat.arm(15 * kMillisecond);  // later: the earlier deadline passes without it
  CHECK(reactor->drain(5000 * kMillisecond));
  CHECK(repeat.fired == 3);
  repeat.arm(kMillisecond);
  repeat.timer.cancel();
  CHECK_FALSE(repeat.timer.armed());
  std::this_thread::sleep_for(std::chrono::milliseconds(3));  // the kernel had it expire already
  CHECK(reactor->drain(5000 * kMillisecond));
  CHECK(repeat.fired == 3);
}

TEST_CASE("signals: a blocked signal arrives as a completion") {
  const auto reactor = started({});
  SignalWatch watch(*reactor);
  const std::array signals = {SIGUSR2};
  REQUIRE(watch.open(signals).has_value());
  struct Receiver {
    void on_signal(int number) {
      received.push_back(number);
      reactor.stop();
    }
    Reactor& reactor;
    std::vector<int> received = {};
  } receiver{.reactor = *reactor};
  watch.start<Receiver, &Receiver::on_signal>(&receiver);
  ::kill(::getpid(), SIGUSR2);
  REQUIRE(reactor->run().has_value());
  CHECK(receiver.received == std::vector<int>{SIGUSR2});
  ::kill(::getpid(), SIGUSR2);  // and the next one too
  CHECK_FALSE(reactor->drain(20 * kMillisecond));
  CHECK(receiver.received == std::vector<int>{SIGUSR2, SIGUSR2});
  watch.stop();
  CHECK(reactor->drain(1000 * kMillisecond));
}

TEST_CASE("reactor: one ring a thread, three at a time") {
  std::vector<std::thread> threads;
  std::array<std::atomic<int>, 3> fired = {};
  threads.reserve(fired.size());
  for (std::atomic<int>& count : fired) {
    threads.emplace_back([&count] {
      auto reactor = Reactor::create({});
      if (!reactor || !(*reactor)->start()) {
        return;
      }
      struct Tick {
        void fire() { ++count; }
        std::atomic<int>& count;
      } tick{count};
      Timer timer(**reactor);
      timer.bind<Tick, &Tick::fire>(&tick);
      for (int i = 0; i < 10; ++i) {
        timer.arm(kMillisecond);
        (*reactor)->drain(1000 * kMillisecond);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const std::atomic<int>& count : fired) {
    CHECK(count == 10);
  }
}

}  // namespace
}  // namespace vireo
