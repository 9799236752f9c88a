// SPDX-License-Identifier: Apache-2.0
#include "src/memory_save.h"

#include <utility>

namespace vireo {

MemorySave::MemorySave(Reactor& reactor, Offload& offload, MemoryImageWriter image)
    : reactor_(reactor), offload_(offload), image_(std::move(image)) {
  for (Worker& worker : workers_) {
    worker.save = this;
    worker.job.bind<Worker, &Worker::work, &Worker::done>(&worker);
  }
}

void MemorySave::round(const PageSet& pages, Done done) {
  done_ = std::move(done);
  result_ = {};
  image_.begin_round(pages);
  begin(Part::kExamine);
}

void MemorySave::begin(Part part) {
  part_ = part;
  next_piece_ = 0;
  working_ = 1;  // this function
  for (Worker& worker : workers_) {
    Result<> submitted = offload_.submit(reactor_, worker.job);
    if (submitted) {
      ++working_;
    } else if (working_ == 1) {
      result_ = std::move(submitted);  // not even one
      break;
    }
  }
  worker_done({});
}

/// On a thread of the pool.
Result<> MemorySave::work() {
  for (;;) {
    const std::size_t piece = next_piece_.fetch_add(1, std::memory_order_relaxed);
    if (piece >= image_.pieces()) {
      return {};
    }
    if (part_ == Part::kExamine) {
      image_.examine(piece);
    } else {
      TRY(image_.write(piece));
    }
  }
}

void MemorySave::worker_done(Result<> result) {
  if (result_ && !result) {
    result_ = std::move(result);
  }
  if (--working_ == 0) {
    part_done();
  }
}

void MemorySave::part_done() {
  if (result_ && part_ == Part::kExamine) {
    image_.place_pages();
    begin(Part::kWrite);
  } else {
    std::exchange(done_, nullptr)(std::move(result_));
  }
}

}  // namespace vireo
