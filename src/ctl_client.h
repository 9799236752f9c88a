// SPDX-License-Identifier: Apache-2.0
// The client's side of a control socket. Blocking calls.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

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
/// The tables of one name in the VM's configuration, such as "disk"; on a connection of its own.
/// Null where the VM has ended meanwhile.
Result<nlohmann::ordered_json> ask_tables(const std::string& socket, const char* name);

}  // namespace vireo
