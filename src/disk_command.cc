// SPDX-License-Identifier: Apache-2.0
#include "src/disk_command.h"

#include <cstdio>
#include <utility>

#include <sys/stat.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "devices/block/overlay_offline.h"

namespace vireo {

namespace {

/// Room that the file takes on its file system.
Result<std::uint64_t> allocated_bytes(int fd) {
  struct stat status = {};
  if (::fstat(fd, &status) < 0) {
    return fail_errno(errno, "fstat");
  }
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

Result<> show(const DiskCommand& command) {
  TRY_ASSIGN(const OverlayFile overlay, open_overlay(command.overlay, false));
  TRY_ASSIGN(const std::uint64_t allocated, allocated_bytes(overlay.file.fd.get()));
  const OverlayHeader& header = overlay.header;
  const std::uint64_t written = overlay.map.count_present() * kOverlayBlock;
  std::string text;
  if (command.json) {
    const nlohmann::ordered_json json = {
        {"version", 1},
        {"size_bytes", header.size},
        {"written_bytes", written},
        {"allocated_bytes", allocated},
        {"cloned", header.cloned},
        {"base",
         {{"path", header.base_path},
          {"size_bytes", header.base_size},
          {"format", header.base_is_overlay ? "overlay" : "raw"}}}};
    text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  } else {
    text = fmt::format(
        "size       {} bytes\nwritten    {} bytes, in blocks of {}\nallocated  {} bytes\n"
        "base       {}, {} bytes{}\n",
        header.size, written, kOverlayBlock, allocated, header.base_path, header.base_size,
        header.cloned            ? "; not needed to read it (a reflink)"
        : header.base_is_overlay ? "; an overlay itself"
                                 : "");
  }
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return fail_errno(errno, "stdout");
  }
  return {};
}

Result<> commit(const DiskCommand& command) {
  TRY_ASSIGN(OverlayFile overlay, open_overlay(command.overlay, true));
  const std::string path =
      command.base.empty() ? overlay.header.base_path : absolute_path(command.base);
  if (overlay.header.base_is_overlay) {
    TRY_ASSIGN(OverlayFile base, open_overlay(path, true));
    TRY_ASSIGN(OverlayBase known, overlay_base_of(path, base.file));
    known.size = base.header.size;
    TRY(check_overlay_base(overlay.header, known));
    return commit_overlay(overlay, base, path);
  }
  TRY_ASSIGN(DiskFile base, open_disk_file(path, {.writable = true}));
  TRY_ASSIGN(const OverlayBase known, overlay_base_of(path, base));
  TRY(check_overlay_base(overlay.header, known));
  return commit_overlay(overlay, base, path);
}

Result<> rebase(const DiskCommand& command) {
  TRY_ASSIGN(OverlayFile overlay, open_overlay(command.overlay, true));
  const std::string path = absolute_path(command.base);
  const bool is_overlay =
      command.moved ? overlay.header.base_is_overlay : command.base_format == "overlay";
  TRY_ASSIGN(const OverlayBacking base, open_backing(path, is_overlay));
  if (command.moved) {
    TRY_ASSIGN(const OverlayBase known, overlay_base_of(path, base));
    if (known.size != overlay.header.base_size) {
      return fail(ErrorCode::kBadInput,
                  fmt::format("{}: --moved: it has {} bytes where the base had {}: it is another",
                              path, known.size, overlay.header.base_size));
    }
    return repoint_overlay(overlay, base, path);
  }
  TRY_ASSIGN(const OverlayBacking old_base,
             open_backing(overlay.header.base_path, overlay.header.base_is_overlay));
  TRY_ASSIGN(const OverlayBase known, overlay_base_of(overlay.header.base_path, old_base));
  TRY(check_overlay_base(overlay.header, known));
  return rebase_overlay(overlay, old_base, base, path);
}

}  // namespace

Result<> run_disk_command(const DiskCommand& command) {
  Result<> done = command.verb == "info"     ? show(command)
                  : command.verb == "commit" ? commit(command)
                                             : rebase(command);
  if (!done) {
    return std::unexpected(std::move(done).error().context("disk " + command.verb));
  }
  return {};
}

}  // namespace vireo
