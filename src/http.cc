// SPDX-License-Identifier: Apache-2.0
#include "src/http.h"

#include <optional>
#include <utility>

// g++ 12 takes an empty boost::optional of the parser's for one that is read.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <fmt/core.h>

namespace vireo {

namespace {

namespace http = boost::beast::http;
using boost::beast::error_code;

std::string text_of(boost::beast::string_view view) {
  return {view.data(), view.size()};
}

unsigned status_of(const error_code& error) {
  if (error == http::error::header_limit) {
    return 431;
  }
  if (error == http::error::body_limit) {
    return 413;
  }
  if (error == http::error::bad_version) {
    return 505;
  }
  return 400;
}

/// Beast asserts that it sees the shortest end of a chunked body in one piece. No part of such a
/// body is followed by less than that.
template <typename Parser>
bool waits_for_chunk(const Parser& parser, std::size_t size) {
  constexpr std::string_view kLastChunk = "0\r\n\r\n";
  return parser.is_header_done() && parser.chunked() && size < kLastChunk.size();
}

}  // namespace

struct HttpRequestParser::Impl {
  using Parser = http::request_parser<http::string_body>;

  Impl() { reset(); }
  void reset() {
    parser.emplace();
    parser->header_limit(kHeaderMax);
    parser->body_limit(kBodyMax);
    fed = false;
  }

  std::optional<Parser> parser;
  // The parser wants a whole header at once; what is there of one is kept here.
  std::string header;
  bool fed = false;
};

HttpRequestParser::HttpRequestParser() : impl_(std::make_unique<Impl>()) {}
HttpRequestParser::~HttpRequestParser() = default;

bool HttpRequestParser::begun() const {
  return impl_->fed && !complete();
}

bool HttpRequestParser::complete() const {
  return impl_->parser->is_done();
}

std::size_t HttpRequestParser::feed(std::span<const std::byte> bytes) {
  Impl::Parser& parser = *impl_->parser;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  impl_->fed = true;
  // What cannot be parsed yet is looked at again with what follows, so it is fed from one buffer.
  const std::size_t before = impl_->header.size();
  impl_->header += text;
  std::size_t parsed = 0;
  error_code error;
  while (parsed < impl_->header.size() && !parser.is_done() &&
         !waits_for_chunk(parser, impl_->header.size() - parsed)) {
    const std::size_t used = parser.put(
        boost::asio::buffer(impl_->header.data() + parsed, impl_->header.size() - parsed), error);
    parsed += used;
    if (error == http::error::need_more) {
      error = {};
      break;
    }
    if (error) {
      error_ = status_of(error);
      return bytes.size();
    }
    if (used == 0) {
      break;
    }
  }
  if (parser.is_done()) {
    // The rest is the next request's: given back, since the caller keeps what was not taken.
    const std::size_t taken = parsed > before ? parsed - before : 0;
    impl_->header.clear();
    return taken;
  }
  impl_->header.erase(0, parsed);
  if (impl_->header.size() > kHeaderMax) {
    error_ = 431;
  }
  return bytes.size();
}

HttpRequest HttpRequestParser::take() {
  Impl::Parser::value_type message = impl_->parser->release();
  HttpRequest request;
  request.method = text_of(message.method_string());
  request.path = text_of(message.target());
  request.path.erase(std::min(request.path.find('?'), request.path.size()));
  request.accept = text_of(message[http::field::accept]);
  request.keep_alive = message.keep_alive();
  request.body = std::move(message.body());
  impl_->reset();
  return request;
}

std::string http_response(unsigned status, std::string_view content_type, std::string_view body,
                          bool keep_alive, std::string_view allow) {
  const std::string reason = text_of(http::obsolete_reason(static_cast<http::status>(status)));
  return fmt::format(
      "HTTP/1.1 {} {}\r\nServer: vireo\r\nConnection: {}\r\n{}Content-Type: {}\r\n"
      "Content-Length: {}\r\n\r\n{}",
      status, reason, keep_alive ? "keep-alive" : "close",
      allow.empty() ? std::string() : fmt::format("Allow: {}\r\n", allow), content_type,
      body.size(), body);
}

std::string http_stream_head(std::string_view content_type) {
  return fmt::format(
      "HTTP/1.1 200 OK\r\nServer: vireo\r\nConnection: close\r\nContent-Type: {}\r\n"
      "Transfer-Encoding: chunked\r\n\r\n",
      content_type);
}

std::string http_chunk(std::string_view data) {
  return fmt::format("{:x}\r\n{}\r\n", data.size(), data);
}

std::string http_request(std::string_view method, std::string_view path, std::string_view accept,
                         std::string_view body) {
  return fmt::format(
      "{} {} HTTP/1.1\r\nHost: vireo\r\nAccept: {}\r\nContent-Type: application/json\r\n"
      "Content-Length: {}\r\n\r\n{}",
      method, path, accept, body.size(), body);
}

// The client
// -----------------------------------------------------------------------------------------

struct HttpResponseParser::Impl {
  struct Body {
    struct value_type {
      std::function<void(std::string_view)> on_body;
    };
    struct reader {
      template <bool isRequest, class Fields>
      reader(http::header<isRequest, Fields>& /*header*/, value_type& value) : value_(value) {}
      void init(const boost::optional<std::uint64_t>& /*length*/, error_code& error) { error = {}; }
      template <class Buffers>
      std::size_t put(const Buffers& buffers, error_code& error) {
        error = {};
        std::size_t size = 0;
        for (const auto piece : boost::beast::buffers_range_ref(buffers)) {
          value_.on_body({static_cast<const char*>(piece.data()), piece.size()});
          size += piece.size();
        }
        return size;
      }
      void finish(error_code& error) { error = {}; }

      value_type& value_;
    };
  };

  http::response_parser<Body> parser;
  std::string pending;
};

HttpResponseParser::HttpResponseParser(std::function<void(std::string_view)> on_body)
    : impl_(std::make_unique<Impl>()) {
  impl_->parser.eager(true);
  impl_->parser.body_limit(boost::none);
  impl_->parser.get().body().on_body = std::move(on_body);
}
HttpResponseParser::~HttpResponseParser() = default;

bool HttpResponseParser::feed(std::string_view bytes) {
  impl_->pending += bytes;
  while (!impl_->pending.empty() && !impl_->parser.is_done() &&
         !waits_for_chunk(impl_->parser, impl_->pending.size())) {
    error_code error;
    const std::size_t used =
        impl_->parser.put(boost::asio::buffer(impl_->pending.data(), impl_->pending.size()), error);
    impl_->pending.erase(0, used);
    if (error && error != http::error::need_more) {
      return false;
    }
    if (used == 0 || error) {
      break;
    }
  }
  return true;
}

bool HttpResponseParser::complete() const {
  return impl_->parser.is_done();
}

unsigned HttpResponseParser::status() const {
  return impl_->parser.is_header_done() ? impl_->parser.get().result_int() : 0;
}

}  // namespace vireo
