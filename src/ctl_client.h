// SPDX-License-Identifier: Apache-2.0
// The client's side of a control socket. Blocking calls.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/base/fd.h"
#include "src/http.h"

namespace vireo {

inline constexpr unsigned kHttpOk = 200;

/// Sends all of `text`, with `files` beside it where there are some.
Result<> send_all(int fd, std::string_view text, std::span<const int> files = {});
/// Reads up to the end of the response; false where the connection ended before.
Result<bool> receive(int fd, HttpResponseParser& parser);
/// The VM's process holds the connection as long as it lives.
void wait_for_end(int fd);

struct CtlAnswer {
  bool whole = false;  ///< else the connection ended before
  unsigned status = 0;
  std::string body;
  bool ok() const { return whole && status == kHttpOk; }
};
/// One request over an open connection, and its answer.
Result<CtlAnswer> ask(int fd, std::string_view method, std::string_view verb, std::string_view body,
                      std::span<const int> files = {});
/// What the VM's configuration is, as JSON; on a connection of its own.
Result<std::string> ask_config(const std::string& socket);

}  // namespace vireo
