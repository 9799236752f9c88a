// SPDX-License-Identifier: Apache-2.0
#include "src/ctl_client.h"

#include <array>
#include <cerrno>

#include <sys/socket.h>
#include <unistd.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "src/base/ancillary_files.h"
#include "src/base/unix_socket.h"

namespace vireo {

Result<> send_all(int fd, std::string_view text, std::span<const int> files) {
  std::string bytes(text);
  iovec piece = {.iov_base = bytes.data(), .iov_len = bytes.size()};
  msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
  AncillaryFiles ancillary;
  if (!files.empty()) {
    ancillary.send_with(message, files);
  }
  const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL);
  if (sent < 0) {
    return fail_errno(errno, "sendmsg");
  }
  return write_full(fd, std::as_bytes(std::span(text)).subspan(static_cast<std::size_t>(sent)));
}

Result<bool> receive(int fd, HttpResponseParser& parser) {
  std::array<char, 16384> buffer = {};
  while (!parser.complete()) {
    const ssize_t size = ::read(fd, buffer.data(), buffer.size());
    if (size < 0 && errno == EINTR) {
      continue;
    }
    // Reset: a listener was closed (by a service manager that gave up, say) with this in its queue.
    if (size == 0 || (size < 0 && errno == ECONNRESET)) {
      return false;
    }
    if (size < 0) {
      return fail_errno(errno, "reading the answer");
    }
    if (!parser.feed({buffer.data(), static_cast<std::size_t>(size)})) {
      return fail(ErrorCode::kSystem, "the answer is no HTTP: is this the socket of a VM?");
    }
  }
  return true;
}

void wait_for_end(int fd) {
  std::array<char, 256> rest = {};
  ssize_t size = 0;
  do {
    size = ::read(fd, rest.data(), rest.size());
  } while (size > 0 || (size < 0 && errno == EINTR));
}

Result<CtlAnswer> ask(int fd, std::string_view method, std::string_view verb, std::string_view body,
                      std::span<const int> files) {
  TRY(send_all(fd, http_request(method, fmt::format("/vireo/{}", verb), "application/json", body),
               files));
  CtlAnswer answer;
  HttpResponseParser parser([&answer](std::string_view data) { answer.body += data; });
  TRY_ASSIGN(answer.whole, receive(fd, parser));
  answer.status = parser.status();
  return answer;
}

Result<nlohmann::ordered_json> ask_tables(const std::string& socket, const char* name) {
  using Json = nlohmann::ordered_json;
  TRY_ASSIGN(const UniqueFd connection, connect_unix(socket));
  TRY_ASSIGN(const CtlAnswer answer, ask(connection.get(), "GET", "config", ""));
  if (!answer.ok()) {
    return Json();
  }
  const Json json = Json::parse(answer.body, nullptr, false);
  return json.is_object() && json.contains("config") && json["config"].contains(name)
             ? json["config"][name]
             : Json::array();
}

}  // namespace vireo
