// SPDX-License-Identifier: Apache-2.0
// usage: kernel_image_seeds DIRECTORY: writes the seeds of the fuzz target kernel_image.
#include <array>
#include <bit>
#include <cstdio>
#include <fstream>
#include <string>

#include "tests/boot/kernel_builder.h"

namespace {

using namespace vireo;
using namespace vireo::testing;

/// As small as a kernel of all parts can be: what counts is how fast the fuzzer can try it.
ElfKernel tiny_linux() {
  ElfKernel kernel = linux_kernel();
  kernel.segments[0].content.resize(64);
  kernel.segments[1].content.resize(48);
  kernel.segments[1].memory_size = 0x1000;
  return kernel;
}

ElfKernel tiny_pvh(std::size_t descriptor_size) {
  ElfKernel kernel = pvh_kernel();
  kernel.segments[0].content.resize(32);
  kernel.notes[1].descriptor.resize(descriptor_size);
  return kernel;
}

Bytes for_machine(std::uint16_t machine, unsigned char data) {
  ElfKernel kernel = tiny_pvh(4);
  kernel.spoil = [=](Elf64_Ehdr& header, auto&) {
    header.e_machine = data == ELFDATA2MSB ? std::byteswap(machine) : machine;
    header.e_ident[EI_DATA] = data;
  };
  return build_elf(kernel);
}

Bytes magic_at(std::size_t offset, std::array<unsigned char, 4> magic) {
  Bytes bytes(offset + 16);
  for (std::size_t i = 0; i < magic.size(); ++i) {
    bytes[offset + i] = static_cast<std::byte>(magic[i]);
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: kernel_image_seeds DIRECTORY\n", stderr);
    return 64;
  }
  const std::string directory = argv[1];
  const auto write = [&](const std::string& name, const Bytes& content) {
    std::ofstream(directory + "/" + name, std::ios::binary)
        .write(reinterpret_cast<const char*>(content.data()),
               static_cast<std::streamsize>(content.size()));
  };
  const Bytes vmlinux = build_elf(tiny_linux());
  ElfKernel two_groups = tiny_linux();
  two_groups.relocations.erase(two_groups.relocations.begin() + 3,
                               two_groups.relocations.begin() + 5);
  write("elf-linux", vmlinux);
  write("elf-linux-two-groups", build_elf(two_groups));
  write("elf-pvh-4", build_elf(tiny_pvh(4)));
  write("elf-pvh-8", build_elf(tiny_pvh(8)));
  for (const std::uint16_t machine : std::to_array<std::uint16_t>(
           {EM_386, EM_AARCH64, EM_ARM, EM_RISCV, EM_PPC64, EM_MIPS, EM_LOONGARCH, EM_ALPHA})) {
    write("elf-machine-" + std::to_string(machine), for_machine(machine, ELFDATA2LSB));
  }
  write("elf-s390", for_machine(EM_S390, ELFDATA2MSB));
  write("elf-sparc", for_machine(EM_SPARCV9, ELFDATA2MSB));
  for (const Compression compression :
       {Compression::kLz4, Compression::kZstd, Compression::kGzip, Compression::kXz,
        Compression::kBzip2, Compression::kUnknown}) {
    const std::string name = compression_name(compression);
    write("bzimage-" + name, build_bzimage(compress(vmlinux, compression)));
    write("bzimage-bomb-" + name,
          build_bzimage(with_declared_size(compress(Bytes(0x8000), compression), 0x100)));
  }
  write("bzimage-old", build_bzimage({}, [](setup_header& header) { header.version = 0x204; }));
  write("zimage", build_bzimage({}, [](setup_header& header) { header.loadflags = 0; }));
  write("image-arm64", magic_at(0x38, {'A', 'R', 'M', 0x64}));
  write("image-riscv", magic_at(0x38, {'R', 'S', 'C', 5}));
  write("image-arm", magic_at(0x24, {0x18, 0x28, 0x6f, 0x01}));
  write("gzip", magic_at(0, {0x1f, 0x8b, 8, 0}));
  write("text", bytes_of("#!/bin/sh\nexit 0\n"));
  return 0;
}
