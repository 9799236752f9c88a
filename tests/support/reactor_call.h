// SPDX-License-Identifier: Apache-2.0
// Something that is begun on a reactor's thread, as the machine begins it, and waited for.
#pragma once

#include <functional>

#include "src/io/reactor.h"

namespace vireo {

/// Calls begin(done) on the reactor's thread; returns when it has run `done`. False where the
/// reactor serves nobody any more.
inline bool begin_and_wait(Reactor& reactor, const std::function<void(Task& done)>& begin) {
  struct Asked {
    void run() { (*begin)(done); }
    void end() { call.finish(); }
    const std::function<void(Task& done)>* begin;
    Task done;
    Call call;
  } asked{.begin = &begin};
  asked.done.bind<Asked, &Asked::end>(&asked);
  asked.call.bind<Asked, &Asked::run>(&asked);
  return reactor.call_and_wait(asked.call);
}

}  // namespace vireo
