// SPDX-License-Identifier: Apache-2.0
// Fuzz target: requests of the control socket, cut anywhere, and answers as `vireo ctl` reads them.
#include "src/http.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "src/base/error.h"
#include "src/ctl_print.h"

namespace vireo {
namespace {

/// What a parser makes of `bytes` in pieces of `piece` at most.
struct Outcome {
  std::string requests;
  unsigned error = 0;
};

Outcome requests_of(std::span<const std::byte> bytes, std::size_t piece) {
  HttpRequestParser parser;
  std::string text;
  while (!bytes.empty() && parser.error() == 0) {
    const auto part = bytes.first(std::min(piece, bytes.size()));
    const std::size_t taken = parser.feed(part);
    CHECK(taken <= part.size() && (taken == part.size() || parser.complete()));
    bytes = bytes.subspan(taken);
    if (parser.complete()) {
      const HttpRequest request = parser.take();
      CHECK(request.body.size() <= HttpRequestParser::kBodyMax);
      text += request.method + ' ' + request.path + ' ' + request.accept + ' ' + request.body +
              (request.keep_alive ? " on\n" : " off\n");
    }
  }
  return {.requests = std::move(text), .error = parser.error()};
}

void read_answer(std::string_view text, std::size_t piece) {
  std::string body;
  HttpResponseParser parser([&body](std::string_view data) { body += data; });
  while (!text.empty() && !parser.complete() && parser.feed(text.substr(0, piece))) {
    text.remove_prefix(std::min(piece, text.size()));
  }
  CHECK(parser.status() < 1000);
  static_cast<void>(answer_for_people("status", body));
  static_cast<void>(answer_for_people("stats", body));
  static_cast<void>(event_for_people(body));
  static_cast<void>(refusal_text(body));
}

}  // namespace
}  // namespace vireo

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) {
    return 0;
  }
  const std::span bytes = std::as_bytes(std::span(data, size)).subspan(1);
  const std::size_t piece = std::size_t{1} + data[0] % 64;
  // However it is cut, the same requests come out. What is none may be told earlier in one case.
  const vireo::Outcome cut = vireo::requests_of(bytes, piece);
  const vireo::Outcome whole = vireo::requests_of(bytes, bytes.size() + 1);
  if (cut.error == 0 && whole.error == 0) {
    CHECK(cut.requests == whole.requests);
  }
  vireo::read_answer({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, piece);
  return 0;
}
