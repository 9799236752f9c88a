// SPDX-License-Identifier: Apache-2.0
// What is done to an overlay while no VM uses it: `vireo disk`. Blocking calls, one thread.
#pragma once

#include "devices/block/disk_file.h"
#include "devices/block/overlay_backing.h"
#include "devices/block/overlay_file.h"
#include "src/base/error.h"

namespace vireo {

/// Writes what the overlay has into `base`, its own, and leaves it with nothing: over the base it
/// reads as before. Cut short at any instant it does so too, and can be done again. Every other
/// overlay over that base is of no use any more.
Result<> commit_overlay(OverlayFile& overlay, DiskFile& base, const std::string& base_path);
/// The same into a base that is an overlay itself.
Result<> commit_overlay(OverlayFile& overlay, OverlayFile& base, const std::string& base_path);

/// Puts the overlay over `new_base`; it reads as before, for which it takes in what the bases
/// differ in (a clone has it already). Cut short it is over `old_base` still.
Result<> rebase_overlay(OverlayFile& overlay, const OverlayBacking& old_base,
                        const OverlayBacking& new_base, const std::string& new_base_path);

/// The same where the new base is known to hold what the old one held: a base that was moved.
Result<> repoint_overlay(OverlayFile& overlay, const OverlayBacking& base,
                         const std::string& base_path);

}  // namespace vireo
