// SPDX-License-Identifier: Apache-2.0
#include "src/change_log.h"

#include "src/base/log.h"

namespace vireo {

Result<> ChangeLog::start() {
  given_back_.clear();
  memory_.start_marking();
  TRY(vm_.start_dirty_log(memory_));
  running_ = true;
  return {};
}

void ChangeLog::stop() {
  memory_.stop_marking();
  running_ = false;
  if (const Result<> stopped = vm_.stop_dirty_log(memory_); !stopped) {
    log_warn("machine", "{}", stopped.error().message());  // it costs time, and nothing else
  }
}

Result<> ChangeLog::take(PageSet& pages) {
  pages.add_all_of(given_back_);
  given_back_.clear();
  memory_.take_marks(pages);
  return vm_.take_dirty_log(memory_, pages);
}

}  // namespace vireo
