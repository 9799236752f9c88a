// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 as the control socket speaks it, both sides: a parser that is fed bytes as they come and
// holds a bounded number of them, and the texts of responses. The parsing is Boost.Beast's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/fd.h"

namespace vireo {

struct HttpRequest {
  std::string method;  ///< as sent: "GET"
  std::string path;    ///< without the query
  std::string accept;  ///< the header's value
  std::string body;
  bool keep_alive = true;
  std::vector<UniqueFd> files;  ///< came beside it on a UNIX socket; none from the parser
};

/// Reads requests one after the other, from bytes cut anywhere.
class HttpRequestParser {
 public:
  static constexpr std::uint32_t kHeaderMax = 8192;
  static constexpr std::uint64_t kBodyMax = std::uint64_t{64} << 10;

  HttpRequestParser();
  HttpRequestParser(const HttpRequestParser&) = delete;
  HttpRequestParser& operator=(const HttpRequestParser&) = delete;
  ~HttpRequestParser();

  /// Takes bytes up to the end of a request and returns how many. Not after complete() or error().
  std::size_t feed(std::span<const std::byte> bytes);
  /// Some of a request is there.
  bool begun() const;
  /// A whole request is there: take() it before the next feed().
  bool complete() const;
  HttpRequest take();
  /// Of what is no request: the status to answer with, after which the connection is closed; or 0.
  unsigned error() const { return error_; }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  unsigned error_ = 0;
};

/// A response of one piece.
std::string http_response(unsigned status, std::string_view content_type, std::string_view body,
                          bool keep_alive, std::string_view allow = {});
/// The head of a response whose body is a stream of chunks, one chunk, and the last.
std::string http_stream_head(std::string_view content_type);
std::string http_chunk(std::string_view data);
inline constexpr std::string_view kHttpLastChunk = "0\r\n\r\n";

/// The client's side: a request's text, and the reading of its response.
std::string http_request(std::string_view method, std::string_view path, std::string_view accept,
                         std::string_view body);

class HttpResponseParser {
 public:
  /// `on_body` gets the body in pieces, as they come.
  explicit HttpResponseParser(std::function<void(std::string_view)> on_body);
  HttpResponseParser(const HttpResponseParser&) = delete;
  HttpResponseParser& operator=(const HttpResponseParser&) = delete;
  ~HttpResponseParser();

  /// Takes the next bytes; false where they are no HTTP response.
  bool feed(std::string_view bytes);
  bool complete() const;
  /// 0 until the head is there.
  unsigned status() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vireo
