// SPDX-License-Identifier: Apache-2.0
#include "src/io/offload.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <pthread.h>

#include "src/base/log.h"
#include "tests/support/catch.h"

namespace vireo {
namespace {

constexpr std::uint64_t kMillisecond = 1'000'000;

std::unique_ptr<Reactor> started() {
  auto reactor = Reactor::create({});
  REQUIRE(reactor.has_value());
  REQUIRE((*reactor)->start().has_value());
  return std::move(*reactor);
}

/// Holds jobs back until it is opened, and counts those that wait at it.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void open() {
    const std::scoped_lock lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  /// Returns when `count` jobs have reached the gate.
  void await(unsigned count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned waiting_ = 0;
  bool open_ = false;
};

/// A job that says where it ran, and stops its reactor when it is done.
struct Call {
  explicit Call(Reactor& on) : reactor(on) { job.bind<Call, &Call::work, &Call::done>(this); }
  Result<> work() {
    worked_on = std::this_thread::get_id();
    std::array<char, 16> name = {};
    ::pthread_getname_np(::pthread_self(), name.data(), name.size());
    thread_name = name.data();
    if (gate != nullptr) {
      gate->pass();
    }
    if (order != nullptr) {
      order->push_back(number);
    }
    return error == 0 ? Result<>() : fail_errno(error, "work");
  }
  void done(Result<> how) {
    done_on = std::this_thread::get_id();
    was_in_flight = job.in_flight();
    results.push_back(std::move(how));
    reactor.stop();
  }

  Reactor& reactor;
  Gate* gate = nullptr;
  std::vector<int>* order = nullptr;  // for a pool of one thread
  int number = 0;
  int error = 0;
  OffloadJob job;
  std::thread::id worked_on;
  std::thread::id done_on;
  std::string thread_name;
  bool was_in_flight = true;
  std::vector<Result<>> results;
};

/// Serves `reactor` until `condition` holds; ten seconds at most, so that a failure ends.
template <typename Condition>
void serve_until(Reactor& reactor, Condition condition) {
  const std::uint64_t limit = monotonic_ns() + 10'000 * kMillisecond;
  while (!condition() && monotonic_ns() < limit) {
    reactor.drain(kMillisecond);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  REQUIRE(condition());
}

std::size_t thread_count() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with("Threads:")) {
      return std::stoul(line.substr(8));
    }
  }
  return 0;
}

TEST_CASE("offload: works on a thread of the pool, ends on the reactor's") {
  const auto reactor = started();
  const std::size_t before = thread_count();
  Offload offload({.threads = 2, .queued = 4});
  CHECK(thread_count() == before);  // nothing is started before it is needed
  Call call(*reactor);
  REQUIRE(offload.submit(*reactor, call.job).has_value());
  CHECK(call.job.in_flight());
  REQUIRE(reactor->run().has_value());
  CHECK(call.worked_on != std::this_thread::get_id());
  CHECK(call.worked_on != std::thread::id());
  CHECK(call.done_on == std::this_thread::get_id());
  CHECK(call.thread_name == "vireo-offload0");
  CHECK_FALSE(call.was_in_flight);
  REQUIRE(call.results.size() == 1);
  CHECK(call.results[0].has_value());
}

TEST_CASE("offload: the work's error is the job's result, and does not stick") {
  const auto reactor = started();
  Offload offload({.threads = 1, .queued = 1});
  Call call(*reactor);
  call.error = ENOSPC;
  REQUIRE(offload.submit(*reactor, call.job).has_value());
  serve_until(*reactor, [&] { return !call.results.empty(); });
  call.error = 0;
  REQUIRE(offload.submit(*reactor, call.job).has_value());
  serve_until(*reactor, [&] { return call.results.size() == 2; });
  REQUIRE_FALSE(call.results[0].has_value());
  CHECK(call.results[0].error().errnum() == ENOSPC);
  CHECK(call.results[1].has_value());
}

TEST_CASE("offload: jobs begin in the order of submission, by no more threads than allowed") {
  const auto reactor = started();
  std::vector<int> order;
  std::vector<std::unique_ptr<Call>> calls;
  Gate gate;
  const std::size_t before = thread_count();
  Offload offload({.threads = 1, .queued = 50});
  for (int i = 0; i < 50; ++i) {
    calls.push_back(std::make_unique<Call>(*reactor));
    calls.back()->gate = &gate;
    calls.back()->order = &order;
    calls.back()->number = i;
    REQUIRE(offload.submit(*reactor, calls.back()->job).has_value());
  }
  CHECK(thread_count() == before + 1);
  gate.open();
  serve_until(*reactor, [&] { return !calls.back()->results.empty(); });
  REQUIRE(order.size() == 50);
  CHECK(std::ranges::is_sorted(order));
}

TEST_CASE("offload: as many threads as jobs that block, and an idle one is used again") {
  const auto reactor = started();
  Gate gate;
  Call first(*reactor);
  Call second(*reactor);
  Call third(*reactor);
  const std::size_t before = thread_count();
  Offload offload({.threads = 8, .queued = 8});
  first.gate = &gate;
  second.gate = &gate;
  REQUIRE(offload.submit(*reactor, first.job).has_value());
  REQUIRE(offload.submit(*reactor, second.job).has_value());
  gate.await(2);  // both at once: a job that blocks holds up nobody else
  CHECK(thread_count() == before + 2);
  gate.open();
  serve_until(*reactor, [&] { return !first.results.empty() && !second.results.empty(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // back at the queue
  REQUIRE(offload.submit(*reactor, third.job).has_value());
  CHECK(thread_count() == before + 2);
  serve_until(*reactor, [&] { return !third.results.empty(); });
}

TEST_CASE("offload: a full queue refuses, and takes jobs again when there is room") {
  const auto reactor = started();
  Gate gate;
  Offload offload({.threads = 1, .queued = 2});
  Call running(*reactor);
  Call one(*reactor);
  Call two(*reactor);
  Call refused(*reactor);
  running.gate = &gate;
  REQUIRE(offload.submit(*reactor, running.job).has_value());
  gate.await(1);
  REQUIRE(offload.submit(*reactor, one.job).has_value());
  REQUIRE(offload.submit(*reactor, two.job).has_value());
  const Result<> full = offload.submit(*reactor, refused.job);
  REQUIRE_FALSE(full.has_value());
  CHECK(full.error().errnum() == EAGAIN);
  CHECK_FALSE(refused.job.in_flight());
  gate.open();
  serve_until(*reactor, [&] { return !two.results.empty(); });
  CHECK(refused.results.empty());
  REQUIRE(offload.submit(*reactor, refused.job).has_value());
  serve_until(*reactor, [&] { return !refused.results.empty(); });
  CHECK(refused.results[0].has_value());
}

TEST_CASE("offload: close waits for what runs and cancels what waits, each told once") {
  const auto reactor = started();
  Gate gate;
  Offload offload({.threads = 2, .queued = 8});
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 6; ++i) {
    calls.push_back(std::make_unique<Call>(*reactor));
    calls.back()->gate = &gate;
    REQUIRE(offload.submit(*reactor, calls.back()->job).has_value());
    if (i < 2) {
      gate.await(static_cast<unsigned>(i) + 1);
    }
  }
  std::thread opener([&gate] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    gate.open();
  });
  const std::uint64_t began = monotonic_ns();
  offload.close();
  CHECK(monotonic_ns() - began > 10 * kMillisecond);
  opener.join();
  for (const auto& call : calls) {
    CHECK(call->results.empty());  // by their reactor, and it has not turned
    CHECK(call->job.in_flight());
  }
  CHECK(reactor->drain(1000 * kMillisecond));
  for (std::size_t i = 0; i < calls.size(); ++i) {
    REQUIRE(calls[i]->results.size() == 1);
    CHECK(calls[i]->results[0].has_value() == (i < 2));
    if (i >= 2) {
      CHECK(calls[i]->results[0].error().errnum() == ECANCELED);
      CHECK(calls[i]->worked_on == std::thread::id());
    }
  }
  Call late(*reactor);
  const Result<> refused = offload.submit(*reactor, late.job);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().errnum() == ECANCELED);
  CHECK_FALSE(late.job.in_flight());
  offload.close();  // once more does nothing
}

TEST_CASE("offload: started, all its threads begin with the hook before any does a job") {
  const auto reactor = started();
  std::mutex mutex;
  std::set<std::thread::id> begun;
  const std::size_t before = thread_count();
  Offload offload({.threads = 5, .queued = 5});
  REQUIRE(offload.start([&]() -> Result<> {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const std::scoped_lock lock(mutex);
    begun.insert(std::this_thread::get_id());
    return {};
  }));
  CHECK(begun.size() == 5);
  CHECK(thread_count() == before + 5);
  // They are idle, and enough: no further thread is started for any job.
  Gate gate;
  std::array<std::unique_ptr<Call>, 5> calls;
  for (auto& call : calls) {
    call = std::make_unique<Call>(*reactor);
    call->gate = &gate;
    REQUIRE(offload.submit(*reactor, call->job));
  }
  gate.await(5);
  CHECK(thread_count() == before + 5);
  gate.open();
  for (const auto& call : calls) {
    serve_until(*reactor, [&] { return !call->results.empty(); });
    CHECK(call->results[0].has_value());
    CHECK(begun.contains(call->worked_on));
  }
  CHECK(begun.size() == 5);
}

TEST_CASE("offload: an error of the hook comes back, the first one, when all have begun") {
  for (const int good : {0, 1, 2}) {
    std::atomic<int> count = 0;
    Offload offload({.threads = 3, .queued = 1});
    const Result<> begun = offload.start([&]() -> Result<> {
      const int number = count++;
      std::this_thread::sleep_for(std::chrono::milliseconds(100 * number));
      return number < good ? Result<>() : fail_errno(100 + number, "hook");
    });
    CHECK(count == 3);
    REQUIRE_FALSE(begun);
    CHECK(begun.error().errnum() == 100 + good);
  }
}

TEST_CASE("offload: started without a hook, and ended without a job") {
  Offload offload({.threads = 2, .queued = 1});
  CHECK(offload.start(nullptr));
}

/// A reactor on a thread of its own that keeps eight jobs going until it has seen `kJobs` end.
struct Client {
  static constexpr unsigned kJobs = 2000;
  static constexpr unsigned kSlots = 8;

  struct Slot {
    Result<> work() {
      square = number * number;
      return number % 3 == 0 ? Result<>() : fail(ErrorCode::kSystem, std::to_string(number));
    }
    void done(Result<> result) { client->slot_done(*this, result); }

    Client* client = nullptr;
    OffloadJob job;
    std::uint64_t number = 0;
    std::uint64_t square = 0;
  };

  void run(Offload& on) {
    offload = &on;
    auto created = Reactor::create({});
    if (!created || !(*created)->start()) {
      return;
    }
    reactor = std::move(*created);
    self = std::this_thread::get_id();
    for (Slot& slot : slots) {
      slot.client = this;
      slot.job.bind<Slot, &Slot::work, &Slot::done>(&slot);
      submit(slot);
    }
    good = good && reactor->run().has_value();
    reactor->close();
  }
  void submit(Slot& slot) {
    slot.number = submitted++;
    if (!offload->submit(*reactor, slot.job)) {
      --submitted;  // the queue is short on purpose: another slot of ours goes on
      ++refused;
      idle.push_back(&slot);
    }
  }
  void slot_done(Slot& slot, const Result<>& result) {
    good = good && std::this_thread::get_id() == self && slot.square == slot.number * slot.number &&
           result.has_value() == (slot.number % 3 == 0) &&
           (result || result.error().message() == std::to_string(slot.number));
    if (++finished == kJobs) {
      reactor->stop();
    }
    idle.push_back(&slot);
    for (std::size_t tries = idle.size(); tries > 0 && submitted < kJobs; --tries) {
      Slot& next = *idle.back();
      idle.pop_back();
      submit(next);
    }
  }

  Offload* offload = nullptr;
  std::unique_ptr<Reactor> reactor;
  std::thread::id self;
  std::array<Slot, kSlots> slots;
  std::vector<Slot*> idle;
  unsigned submitted = 0;
  unsigned finished = 0;
  unsigned refused = 0;
  bool good = true;
};

TEST_CASE("offload: three reactors share a pool, each gets its own results") {
  std::array<Client, 3> clients;
  // Longer than two clients fill, so that the third always has a job of its own to go on with.
  Offload offload({.threads = 3, .queued = 2 * Client::kSlots + 1});
  std::vector<std::thread> threads;
  threads.reserve(clients.size());
  for (Client& client : clients) {
    threads.emplace_back([&client, &offload] { client.run(offload); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Client& client : clients) {
    CHECK(client.good);
    CHECK(client.finished == Client::kJobs);
  }
}

TEST_CASE("offload: closed while three reactors submit, every job that was taken ends") {
  struct Submitter {
    Result<> work() { return {}; }
    void done(Result<> /*result*/) {
      ++ended;
      again();
    }
    void again() {
      if (offload->submit(*reactor, job)) {
        ++taken;
      } else {
        reactor->stop();
      }
    }
    void run(Offload& on) {
      offload = &on;
      auto created = Reactor::create({});
      if (!created || !(*created)->start()) {
        return;
      }
      reactor = std::move(*created);
      job.bind<Submitter, &Submitter::work, &Submitter::done>(this);
      again();
      good = reactor->run().has_value();
      reactor->close();
    }
    Offload* offload = nullptr;
    std::unique_ptr<Reactor> reactor;
    OffloadJob job;
    unsigned taken = 0;
    unsigned ended = 0;
    bool good = false;
  };
  std::array<Submitter, 3> submitters;
  Offload offload({.threads = 2, .queued = 16});
  std::vector<std::thread> threads;
  threads.reserve(submitters.size());
  for (Submitter& submitter : submitters) {
    threads.emplace_back([&submitter, &offload] { submitter.run(offload); });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  offload.close();
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const Submitter& submitter : submitters) {
    CHECK(submitter.good);
    CHECK(submitter.taken > 0);
    CHECK(submitter.ended == submitter.taken);
  }
}

TEST_CASE("offload: a job may be ended by its own completion") {
  const auto reactor = started();
  Offload offload({.threads = 1, .queued = 1});
  struct Owner {
    Result<> work() { return {}; }
    void done(Result<> /*result*/) { self->reset(); }
    std::unique_ptr<Owner>* self = nullptr;
    OffloadJob job;
  };
  auto owner = std::make_unique<Owner>();
  owner->self = &owner;
  owner->job.bind<Owner, &Owner::work, &Owner::done>(owner.get());
  REQUIRE(offload.submit(*reactor, owner->job).has_value());
  serve_until(*reactor, [&] { return owner == nullptr; });
}

}  // namespace
}  // namespace vireo
