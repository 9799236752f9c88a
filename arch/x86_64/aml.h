// SPDX-License-Identifier: Apache-2.0
// A small writer of ACPI Machine Language (ACPI 6.5, chapter 20): each function returns the bytes
// of one term, and terms nest by concatenation.
//
//   aml::device("COM1", {aml::name("_HID", aml::eisa_id("PNP0501")), …})
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace vireo::arch::aml {

using Bytes = std::vector<std::uint8_t>;

Bytes join(std::initializer_list<Bytes> parts);

// Data.
Bytes integer(std::uint64_t value);
Bytes string(std::string_view text);
/// A compressed id such as PNP0501 (§19.3.4, EISAID).
Bytes eisa_id(std::string_view id);
Bytes buffer(const Bytes& content);
Bytes package(std::initializer_list<Bytes> elements);

// Names and containers. A path is `\` and up to two segments, or one segment.
Bytes path(std::string_view text);
Bytes name(std::string_view text, const Bytes& value);
Bytes scope(std::string_view text, const Bytes& terms);
Bytes device(std::string_view text, std::initializer_list<Bytes> terms);
/// Serialized, without a sync level.
Bytes method(std::string_view text, std::uint8_t arguments, std::initializer_list<Bytes> terms);

// Statements.
Bytes local0();
Bytes store(const Bytes& value, const Bytes& target);
Bytes bitwise_and(const Bytes& left, const Bytes& right);
Bytes if_then(const Bytes& predicate, const Bytes& then);
Bytes notify(std::string_view object, std::uint8_t value);
/// A region of ports, and one 32-bit field over its start.
Bytes port_region(std::string_view text, std::uint16_t port, std::uint8_t size);
Bytes dword_field(std::string_view region, std::string_view field);

// Resources (§6.4); resource_template() ends them with the end tag.
Bytes resource_template(std::initializer_list<Bytes> resources);
Bytes io_ports(std::uint16_t port, std::uint8_t count);
Bytes memory32_fixed(std::uint32_t address, std::uint32_t size);
/// Windows that a bridge passes on to its bus: numbers of buses, and memory that is not cached.
Bytes bus_numbers(std::uint16_t first, std::uint16_t count);
Bytes memory32_window(std::uint32_t address, std::uint32_t size);
/// Edge-triggered, active high, exclusive.
Bytes edge_interrupt(std::uint32_t gsi);

}  // namespace vireo::arch::aml
