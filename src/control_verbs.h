// SPDX-License-Identifier: Apache-2.0
// The verbs of the control socket: what each path under /vireo/ shows or does. Later verbs are
// lines of the table in the .cc, and of src/manual/verbs.h.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "src/http.h"
#include "src/machine.h"

namespace vireo {

struct ControlReply {
  unsigned status = 200;
  std::string body;
  std::string_view content_type = "application/json";
  std::string_view allow = {};  ///< of a 405: the method that would be right
  bool stream = false;          ///< the connection gets events from here on; body is the first
};

/// Answers `request`, at once or later, by `done`; takes its file where the verb wants one. On the
/// reactor's thread.
void answer_control(Machine& machine, HttpRequest& request,
                    const std::function<void(ControlReply)>& done);

/// {"version": 1, "error": what}
ControlReply control_error(unsigned status, std::string_view what);

}  // namespace vireo
