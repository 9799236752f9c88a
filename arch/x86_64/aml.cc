// SPDX-License-Identifier: Apache-2.0
#include "arch/x86_64/aml.h"

#include <string>

#include "src/base/error.h"

namespace vireo::arch::aml {

namespace {

// Opcodes, ACPI 6.5 §20.3.
constexpr std::uint8_t kZeroOp = 0x00;
constexpr std::uint8_t kOneOp = 0x01;
constexpr std::uint8_t kNameOp = 0x08;
constexpr std::uint8_t kBytePrefix = 0x0a;
constexpr std::uint8_t kWordPrefix = 0x0b;
constexpr std::uint8_t kDWordPrefix = 0x0c;
constexpr std::uint8_t kStringPrefix = 0x0d;
constexpr std::uint8_t kQWordPrefix = 0x0e;
constexpr std::uint8_t kScopeOp = 0x10;
constexpr std::uint8_t kBufferOp = 0x11;
constexpr std::uint8_t kPackageOp = 0x12;
constexpr std::uint8_t kMethodOp = 0x14;
constexpr std::uint8_t kDualNamePrefix = 0x2e;
constexpr std::uint8_t kExtOpPrefix = 0x5b;
constexpr std::uint8_t kOpRegionOp = 0x80;
constexpr std::uint8_t kFieldOp = 0x81;
constexpr std::uint8_t kDeviceOp = 0x82;
constexpr std::uint8_t kLocal0Op = 0x60;
constexpr std::uint8_t kStoreOp = 0x70;
constexpr std::uint8_t kAndOp = 0x7b;
constexpr std::uint8_t kNotifyOp = 0x86;
constexpr std::uint8_t kIfOp = 0xa0;

constexpr std::uint8_t kSystemIo = 0x01;
constexpr std::uint8_t kDWordAccessNoLockPreserve = 0x03;
constexpr std::uint8_t kMethodSerialized = 1U << 3;

// Address space descriptors, §6.4.3.5: the type of the space, and what is in the general flags.
constexpr std::uint8_t kMemoryRange = 0;
constexpr std::uint8_t kBusNumberRange = 2;
constexpr std::uint8_t kProducerFixed = 1U << 2 | 1U << 3;

void append(Bytes& to, const Bytes& from) {
  to.insert(to.end(), from.begin(), from.end());
}

Bytes little_endian(std::uint64_t value, unsigned count) {
  Bytes bytes;
  for (unsigned i = 0; i < count; ++i) {
    bytes.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
  }
  return bytes;
}

/// A number of 6, 12 or 20 bits with its own length in front (§20.2.4); `extra` bytes of the
/// package are counted beyond it.
Bytes encode_length(std::size_t length) {
  const auto byte = [](std::size_t value) { return static_cast<std::uint8_t>(value & 0xff); };
  if (length < 1U << 6) {
    return {byte(length)};
  }
  if (length < 1U << 12) {
    return {byte((1U << 6) | (length & 0xf)), byte(length >> 4)};
  }
  CHECK(length < 1U << 20);
  return {byte((2U << 6) | (length & 0xf)), byte(length >> 4), byte(length >> 12)};
}

/// PkgLength counts itself.
Bytes with_package_length(const Bytes& content) {
  std::size_t own = 1;
  while (encode_length(content.size() + own).size() != own) {
    ++own;
  }
  Bytes bytes = encode_length(content.size() + own);
  append(bytes, content);
  return bytes;
}

Bytes segment(std::string_view text) {
  CHECK(!text.empty() && text.size() <= 4);
  std::string padded(text);
  padded.resize(4, '_');
  return {padded.begin(), padded.end()};
}

}  // namespace

Bytes join(std::initializer_list<Bytes> parts) {
  Bytes bytes;
  for (const Bytes& part : parts) {
    append(bytes, part);
  }
  return bytes;
}

Bytes integer(std::uint64_t value) {
  if (value == 0) {
    return {kZeroOp};
  }
  if (value == 1) {
    return {kOneOp};
  }
  if (value <= 0xff) {
    return join({{kBytePrefix}, little_endian(value, 1)});
  }
  if (value <= 0xffff) {
    return join({{kWordPrefix}, little_endian(value, 2)});
  }
  if (value <= 0xffffffff) {
    return join({{kDWordPrefix}, little_endian(value, 4)});
  }
  return join({{kQWordPrefix}, little_endian(value, 8)});
}

Bytes string(std::string_view text) {
  return join({{kStringPrefix}, Bytes(text.begin(), text.end()), {0}});
}

Bytes eisa_id(std::string_view id) {
  CHECK(id.size() == 7);
  const auto letter = [&](std::size_t i) { return static_cast<unsigned>(id[i] - 0x40) & 0x1f; };
  const unsigned vendor = letter(0) << 10 | letter(1) << 5 | letter(2);
  const auto product = static_cast<unsigned>(std::stoul(std::string(id.substr(3)), nullptr, 16));
  return {kDWordPrefix, static_cast<std::uint8_t>(vendor >> 8), static_cast<std::uint8_t>(vendor),
          static_cast<std::uint8_t>(product >> 8), static_cast<std::uint8_t>(product)};
}

Bytes buffer(const Bytes& content) {
  return join({{kBufferOp}, with_package_length(join({integer(content.size()), content}))});
}

Bytes package(std::initializer_list<Bytes> elements) {
  Bytes content = {static_cast<std::uint8_t>(elements.size())};
  append(content, join(elements));
  return join({{kPackageOp}, with_package_length(content)});
}

Bytes path(std::string_view text) {
  Bytes bytes;
  if (text.starts_with('\\')) {
    bytes.push_back('\\');
    text.remove_prefix(1);
  }
  const std::size_t dot = text.find('.');
  if (dot == std::string_view::npos) {
    append(bytes, segment(text));
    return bytes;
  }
  bytes.push_back(kDualNamePrefix);
  append(bytes, segment(text.substr(0, dot)));
  append(bytes, segment(text.substr(dot + 1)));
  return bytes;
}

Bytes name(std::string_view text, const Bytes& value) {
  return join({{kNameOp}, path(text), value});
}

Bytes scope(std::string_view text, const Bytes& terms) {
  return join({{kScopeOp}, with_package_length(join({path(text), terms}))});
}

Bytes device(std::string_view text, std::initializer_list<Bytes> terms) {
  return join({{kExtOpPrefix, kDeviceOp}, with_package_length(join({path(text), join(terms)}))});
}

Bytes method(std::string_view text, std::uint8_t arguments, std::initializer_list<Bytes> terms) {
  const auto flags = static_cast<std::uint8_t>(arguments | kMethodSerialized);
  return join({{kMethodOp}, with_package_length(join({path(text), {flags}, join(terms)}))});
}

Bytes local0() {
  return {kLocal0Op};
}

Bytes store(const Bytes& value, const Bytes& target) {
  return join({{kStoreOp}, value, target});
}

Bytes bitwise_and(const Bytes& left, const Bytes& right) {
  return join({{kAndOp}, left, right, {kZeroOp}});  // no target: only the value is wanted
}

Bytes if_then(const Bytes& predicate, const Bytes& then) {
  return join({{kIfOp}, with_package_length(join({predicate, then}))});
}

Bytes notify(std::string_view object, std::uint8_t value) {
  return join({{kNotifyOp}, path(object), integer(value)});
}

Bytes port_region(std::string_view text, std::uint16_t port, std::uint8_t size) {
  return join({{kExtOpPrefix, kOpRegionOp}, path(text), {kSystemIo}, integer(port), integer(size)});
}

Bytes dword_field(std::string_view region, std::string_view field) {
  const Bytes list = join({segment(field), encode_length(32)});
  return join({{kExtOpPrefix, kFieldOp},
               with_package_length(join({path(region), {kDWordAccessNoLockPreserve}, list}))});
}

Bytes resource_template(std::initializer_list<Bytes> resources) {
  return buffer(join({join(resources), {0x79, 0x00}}));  // end tag; 0: no checksum
}

Bytes io_ports(std::uint16_t port, std::uint8_t count) {
  constexpr std::uint8_t kDecode16 = 1;
  return join({{0x47, kDecode16}, little_endian(port, 2), little_endian(port, 2), {1, count}});
}

Bytes memory32_fixed(std::uint32_t address, std::uint32_t size) {
  constexpr std::uint8_t kReadWrite = 1;
  return join({{0x86, 9, 0, kReadWrite}, little_endian(address, 4), little_endian(size, 4)});
}

Bytes bus_numbers(std::uint16_t first, std::uint16_t count) {
  return join({{0x88, 13, 0, kBusNumberRange, kProducerFixed, 0},
               little_endian(0, 2),  // granularity
               little_endian(first, 2),
               little_endian(first + count - 1U, 2),
               little_endian(0, 2),  // translation
               little_endian(count, 2)});
}

Bytes memory32_window(std::uint32_t address, std::uint32_t size) {
  constexpr std::uint8_t kReadWriteUncached = 1;
  return join({{0x87, 23, 0, kMemoryRange, kProducerFixed, kReadWriteUncached},
               little_endian(0, 4),  // granularity
               little_endian(address, 4),
               little_endian(address + (size - 1), 4),
               little_endian(0, 4),  // translation
               little_endian(size, 4)});
}

Bytes edge_interrupt(std::uint32_t gsi) {
  constexpr std::uint8_t kConsumerEdge = 1U << 0 | 1U << 1;
  return join({{0x89, 6, 0, kConsumerEdge, 1}, little_endian(gsi, 4)});
}

}  // namespace vireo::arch::aml
