// SPDX-License-Identifier: Apache-2.0
// The one error type of vireo, and how it travels.
//
// An Error describes what an operator or the host did wrong; it reaches main or the control socket
// as one line with its chain of contexts. A guest's mistake is never an Error (it is a status that
// the guest sees), and our own mistake is a CHECK.
//
//   Result<Disk> open_disk(const std::string& path) {
//     TRY_ASSIGN(UniqueFd fd, open_file(path, O_RDWR));
//     TRY(lock_image(fd));
//     return Disk(std::move(fd));
//   }
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace vireo {

/// Why something failed, as far as a caller (main: the exit status) needs to tell cases apart.
enum class ErrorCode : std::uint8_t {
  kUsage,         ///< wrong command line (64)
  kBadInput,      ///< unusable kernel, snapshot or image (65)
  kMissingInput,  ///< an input is not there (66)
  kNoKvm,         ///< KVM is missing or lacks a capability (69)
  kInternal,      ///< our own fault (70)
  kSystem,        ///< the system refused a resource (71)
  kPermission,    ///< permission denied (77)
  kConfig,        ///< wrong configuration (78)
};

/// An error with its chain of contexts. Cheap to move; lives on the cold path only.
class [[nodiscard]] Error {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}

  /// An error from a failed system call. EACCES and EPERM become kPermission, a path that names
  /// nothing (ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP) kMissingInput, everything else kSystem. The
  /// message is `what: strerror(errnum)`.
  static Error from_errno(int errnum, std::string_view what);

  ErrorCode code() const { return code_; }
  /// The errno behind it, or 0.
  int errnum() const { return errnum_; }
  /// One line, outermost context first: "opening disk root: /x.img: No such file or directory".
  const std::string& message() const { return message_; }

  /// Puts "what: " before the message and returns the error, for use in a return statement.
  Error context(std::string_view what) &&;
  /// The same error under another code (main maps the code to the exit status).
  Error with_code(ErrorCode code) &&;

 private:
  ErrorCode code_;
  int errnum_ = 0;
  std::string message_;
};

template <typename T = void>
using Result = std::expected<T, Error>;

/// Shorthand for returning a new error from a function that returns a Result.
inline std::unexpected<Error> fail(ErrorCode code, std::string message) {
  return std::unexpected(Error(code, std::move(message)));
}
inline std::unexpected<Error> fail_errno(int errnum, std::string_view what) {
  return std::unexpected(Error::from_errno(errnum, what));
}

/// Prints "file:line: check failed: condition" to stderr and aborts.
[[noreturn]] void check_failed(const char* file, int line, const char* condition);

}  // namespace vireo

// Our own invariants, in every build: a failed one is a bug of ours, never a guest's doing.
#define CHECK(condition)                                     \
  do {                                                       \
    if (!(condition)) [[unlikely]] {                         \
      ::vireo::check_failed(__FILE__, __LINE__, #condition); \
    }                                                        \
  } while (false)

#define VIREO_CONCAT_(a, b) a##b
#define VIREO_CONCAT(a, b) VIREO_CONCAT_(a, b)

// Returns the error of a Result<…> expression to the caller, if it holds one.
#define TRY(expression)                                       \
  do {                                                        \
    auto try_result_ = (expression);                          \
    if (!try_result_) [[unlikely]] {                          \
      return std::unexpected(std::move(try_result_).error()); \
    }                                                         \
  } while (false)

// TRY_ASSIGN(auto x, f()): declares (or assigns) x from a Result, or returns its error.
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration takes none
#define TRY_ASSIGN(declaration, expression) \
  TRY_ASSIGN_(VIREO_CONCAT(try_result_, __LINE__), declaration, expression)
#define TRY_ASSIGN_(result, declaration, expression)   \
  auto result = (expression);                          \
  if (!result) [[unlikely]] {                          \
    return std::unexpected(std::move(result).error()); \
  }                                                    \
  declaration = std::move(*result)
// NOLINTEND(bugprone-macro-parentheses)
