// SPDX-License-Identifier: Apache-2.0
// The parts of the manual's pages that are made from the tables, in mdoc(7).
#pragma once

#include <string>
#include <string_view>

namespace vireo::manual {

/// What the line "@NAME ARGUMENT@" of a page's template stands for; empty where there is no such
/// part:
///   os                 the version
///   synopsis           every command with what stands behind it
///   options COMMAND    a list of its options
///   verbs              a list of the control socket's verbs
///   examples COMMAND   its examples, a line each
///   statuses COMMAND   a list of its exit statuses
///   keys TABLE         a list of the keys of a table of the configuration file; of no table: top
///   fields OBJECT      a list of the fields of an object of kObjects
std::string page_part(std::string_view name, std::string_view argument);

}  // namespace vireo::manual
