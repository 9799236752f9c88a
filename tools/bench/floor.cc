// SPDX-License-Identifier: Apache-2.0
// vireo-floor: the bare floor under `vireo-bench start` and `restore`. It starts the probe with
// only the ioctls that this needs, memory slot first, and nothing that a VMM has around them; what
// a VMM takes longer is its own.
//
//   vireo-floor [--memory MIB] [--cmdline WORDS] [--t0 NS] [--mark] PROBE
//
// Goes on to the guest's end, which becomes the exit status as vireo has them (0 power-off, 10
// reset, 11 panic, 12 triple fault), and shows what the guest writes to COM1. With --t0,
// CLOCK_MONOTONIC in nanoseconds just before exec, it tells when the guest was entered first and
// when it wrote its first byte to the mark port; with --mark it ends there.
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <initializer_list>
#include <string_view>

#include <elf.h>
#include <fcntl.h>
#include <linux/stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

// As in src/kvm/uapi.h, which tools may not include: without this, kernel headers of 6.1 give
// kvm_cpuid2, and so the numbers of its ioctls, another size in C++ than in C.
#undef __DECLARE_FLEX_ARRAY
// NOLINTNEXTLINE(bugprone-reserved-identifier): the kernel's own name.
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[]

#include <linux/kvm.h>

static_assert(sizeof(kvm_cpuid2) == 8);

namespace {

constexpr std::uint64_t kStartInfo = 0x6000;
constexpr std::uint64_t kMemoryMap = 0x6100;
constexpr std::uint64_t kCommandLine = 0x20000;
constexpr std::size_t kCommandLineMax = 0x10000;
constexpr std::uint64_t kLowMemoryEnd = 0x9fc00;
constexpr std::uint64_t kHighMemoryStart = 0x100000;
constexpr std::uint64_t kMmioHoleStart = 0xc0000000;
constexpr std::uint64_t kMmioHoleEnd = 0x100000000;
constexpr std::uint64_t kMemoryMaxMib = std::uint64_t{1} << 20;

constexpr std::uint16_t kMarkPort = 0x3f0;
constexpr std::uint16_t kCom1Data = 0x3f8;
constexpr std::uint16_t kCom1LineStatus = 0x3fd;
constexpr std::uint16_t kI8042Command = 0x64;
constexpr std::uint16_t kPvpanic = 0x505;
constexpr std::uint16_t kSleepControl = 0x600;
constexpr std::uint8_t kTransmitterEmpty = 0x60;
constexpr std::uint8_t kI8042Reset = 0xfe;

constexpr int kExitPowerOff = 0;
constexpr int kExitReboot = 10;
constexpr int kExitPanic = 11;
constexpr int kExitCrash = 12;
constexpr int kExitUsage = 64;
constexpr int kExitBadInput = 65;
constexpr int kExitSystem = 71;

constexpr std::uint32_t kXenPhys32Entry = 18;
constexpr std::size_t kProgramHeadersMax = 16;
constexpr std::size_t kCpuidEntriesMax = 256;

// Xen's public/arch-x86/hvm/start_info.h.
struct StartInfo {
  std::uint32_t magic = 0x336ec578;
  std::uint32_t version = 1;
  std::uint32_t flags = 0;
  std::uint32_t module_count = 0;
  std::uint64_t modules = 0;
  std::uint64_t command_line = 0;
  std::uint64_t rsdp = 0;
  std::uint64_t memory_map = 0;
  std::uint32_t memory_map_entries = 0;
  std::uint32_t reserved = 0;
};
struct MemoryMapEntry {
  std::uint64_t address = 0;
  std::uint64_t size = 0;
  std::uint32_t type = 1;  // RAM
  std::uint32_t reserved = 0;
};

struct Options {
  std::uint64_t memory_mib = 128;
  std::uint64_t start_ns = 0;
  bool end_at_mark = false;
  std::string_view cmdline = "probe=start end=reboot";
  const char* probe = nullptr;
};

void put(std::FILE* file, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    std::fputs(part, file);
  }
  std::fflush(file);
}

[[noreturn]] void die(int status, const char* what, const char* why) {
  put(stderr, {"vireo-floor: ", what, ": ", why, "\n"});
  std::exit(status);
}

[[noreturn]] void die_errno(const char* what) {
  die(kExitSystem, what, std::strerror(errno));
}

std::array<char, 24> number_text(std::uint64_t value) {
  std::array<char, 24> text = {};
  std::to_chars(text.begin(), text.end(), value);
  return text;
}

template <typename Argument>
int must_ioctl(int fd, unsigned long request, Argument argument, const char* what) {
  const int result = ::ioctl(fd, request, argument);
  if (result < 0) {
    die_errno(what);
  }
  return result;
}

std::uint64_t monotonic_ns() {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t parse_number(const char* option, const char* text) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (errno != 0 || *text < '0' || *text > '9' || *end != '\0') {
    die(kExitUsage, option, "takes a number");
  }
  return value;
}

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--mark") {
      options.end_at_mark = true;
    } else if (word == "--memory" && i + 1 < argc) {
      options.memory_mib = parse_number("--memory", argv[++i]);
    } else if (word == "--t0" && i + 1 < argc) {
      options.start_ns = parse_number("--t0", argv[++i]);
    } else if (word == "--cmdline" && i + 1 < argc) {
      options.cmdline = argv[++i];
    } else if (!word.starts_with("-") && options.probe == nullptr) {
      options.probe = argv[i];
    } else {
      die(kExitUsage, argv[i], "not understood");
    }
  }
  if (options.probe == nullptr) {
    die(kExitUsage, "usage", "[--memory MIB] [--cmdline WORDS] [--t0 NS] [--mark] PROBE");
  }
  if (options.memory_mib < 2 || options.memory_mib > kMemoryMaxMib) {
    die(kExitUsage, "--memory", "takes 2 to 1048576 MiB");
  }
  if (options.cmdline.size() >= kCommandLineMax) {
    die(kExitUsage, "--cmdline", "too long");
  }
  return options;
}

void* must_mmap(std::size_t size, int flags, int fd, const char* what) {
  void* const base = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (base == MAP_FAILED) {
    die_errno(what);
  }
  return base;
}

class Memory {
 public:
  explicit Memory(std::uint64_t size_bytes)
      : size_bytes_(size_bytes),
        base_(must_mmap(size_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                        "guest memory")) {}

  /// Below the hole for devices; what is left follows it in this process and begins behind it in
  /// the guest.
  [[nodiscard]] std::uint64_t low_bytes() const { return std::min(size_bytes_, kMmioHoleStart); }
  [[nodiscard]] std::uint64_t high_bytes() const { return size_bytes_ - low_bytes(); }
  [[nodiscard]] std::uint64_t base() const { return reinterpret_cast<std::uint64_t>(base_); }

  std::byte* at(std::uint64_t address, std::uint64_t size) {
    if (address > low_bytes() || size > low_bytes() - address) {
      die(kExitBadInput, "guest memory", "the probe does not fit");
    }
    return static_cast<std::byte*>(base_) + address;
  }
  void write(std::uint64_t address, const void* bytes, std::size_t size) {
    std::memcpy(at(address, size), bytes, size);
  }

 private:
  std::uint64_t size_bytes_;
  void* base_;
};

void read_exactly(int fd, void* to, std::size_t size, std::uint64_t offset) {
  if (::pread(fd, to, size, static_cast<off_t>(offset)) != static_cast<ssize_t>(size)) {
    die(kExitBadInput, "probe", "cannot be read, or ends too early");
  }
}

/// Copies the probe to where it is linked and returns its PVH entry. Only the probe: its note is
/// the only one in its segment.
std::uint32_t load_probe(const char* path, Memory& memory) {
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    die(kExitBadInput, path, std::strerror(errno));
  }
  Elf64_Ehdr header = {};
  read_exactly(fd, &header, sizeof(header), 0);
  if (std::memcmp(static_cast<const void*>(header.e_ident), ELFMAG, SELFMAG) != 0 ||
      header.e_machine != EM_X86_64 || header.e_phnum > kProgramHeadersMax ||
      header.e_phentsize != sizeof(Elf64_Phdr)) {
    die(kExitBadInput, path, "not the probe");
  }
  std::array<Elf64_Phdr, kProgramHeadersMax> segments = {};
  read_exactly(fd, segments.data(), header.e_phnum * sizeof(Elf64_Phdr), header.e_phoff);
  struct {
    Elf64_Nhdr header = {};
    std::array<char, 4> name = {};
    std::uint32_t entry = 0;
  } note;
  for (std::size_t i = 0; i < header.e_phnum; ++i) {
    const Elf64_Phdr& segment = segments[i];
    if (segment.p_type == PT_LOAD) {
      memory.at(segment.p_paddr, segment.p_memsz);
      read_exactly(fd, memory.at(segment.p_paddr, segment.p_filesz), segment.p_filesz,
                   segment.p_offset);
    } else if (segment.p_type == PT_NOTE) {
      read_exactly(fd, &note, sizeof(note), segment.p_offset);
    }
  }
  ::close(fd);
  if (note.header.n_type != kXenPhys32Entry ||
      std::string_view(note.name.data(), note.name.size()) != std::string_view("Xen\0", 4)) {
    die(kExitBadInput, path, "has no PVH note");
  }
  return note.entry;
}

void write_start_info(Memory& memory, std::string_view cmdline) {
  const std::array map = {
      MemoryMapEntry{.address = 0, .size = kLowMemoryEnd},
      MemoryMapEntry{.address = kHighMemoryStart, .size = memory.low_bytes() - kHighMemoryStart},
      MemoryMapEntry{.address = kMmioHoleEnd, .size = memory.high_bytes()}};
  const StartInfo info = {.command_line = kCommandLine,
                          .memory_map = kMemoryMap,
                          .memory_map_entries = memory.high_bytes() > 0 ? 3U : 2U};
  memory.write(kCommandLine, cmdline.data(), cmdline.size());
  memory.write(kMemoryMap, map.data(), sizeof(map));
  memory.write(kStartInfo, &info, sizeof(info));
}

kvm_segment flat_segment(std::uint8_t type) {
  kvm_segment segment = {};
  segment.limit = 0xffffffff;
  segment.type = type;
  segment.present = 1;
  segment.db = 1;
  segment.s = 1;
  segment.g = 1;
  return segment;
}

/// 32-bit protected mode without paging, %ebx at the start info: the PVH boot ABI.
void set_registers(int vcpu_fd, std::uint32_t entry) {
  kvm_sregs sregs = {};
  must_ioctl(vcpu_fd, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
  sregs.cs = flat_segment(0xb);
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat_segment(0x3);
  sregs.tr = flat_segment(0xb);
  sregs.tr.s = sregs.tr.g = sregs.tr.db = 0;
  sregs.tr.limit = 0x67;
  sregs.cr0 = 0x11;  // PE, ET
  must_ioctl(vcpu_fd, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
  kvm_regs regs = {};
  regs.rflags = 0x2;
  regs.rip = entry;
  regs.rbx = kStartInfo;
  must_ioctl(vcpu_fd, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

/// Without it a guest may not have long mode.
void set_cpuid(int kvm_fd, int vcpu_fd) {
  static std::array<std::uint64_t,
                    (sizeof(kvm_cpuid2) + kCpuidEntriesMax * sizeof(kvm_cpuid_entry2)) /
                        sizeof(std::uint64_t)>
      buffer;
  auto* const cpuid = reinterpret_cast<kvm_cpuid2*>(buffer.data());
  cpuid->nent = kCpuidEntriesMax;
  must_ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID");
  must_ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
}

int open_kvm() {
  const int fd = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    die_errno("/dev/kvm");
  }
  return fd;
}

/// The slots first: behind the interrupt controllers they would wait for milliseconds.
int create_vcpu(int vm_fd, const Memory& memory) {
  const std::array slots = {
      kvm_userspace_memory_region{.slot = 0,
                                  .flags = 0,
                                  .guest_phys_addr = 0,
                                  .memory_size = memory.low_bytes(),
                                  .userspace_addr = memory.base()},
      kvm_userspace_memory_region{.slot = 1,
                                  .flags = 0,
                                  .guest_phys_addr = kMmioHoleEnd,
                                  .memory_size = memory.high_bytes(),
                                  .userspace_addr = memory.base() + memory.low_bytes()}};
  for (const kvm_userspace_memory_region& slot : slots) {
    if (slot.memory_size > 0) {
      must_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot, "KVM_SET_USER_MEMORY_REGION");
    }
  }
  must_ioctl(vm_fd, KVM_CREATE_IRQCHIP, 0UL, "KVM_CREATE_IRQCHIP");
  return must_ioctl(vm_fd, KVM_CREATE_VCPU, 0UL, "KVM_CREATE_VCPU");
}

kvm_run* map_run(int kvm_fd, int vcpu_fd) {
  const int size = must_ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0UL, "KVM_GET_VCPU_MMAP_SIZE");
  return static_cast<kvm_run*>(
      must_mmap(static_cast<std::size_t>(size), MAP_SHARED, vcpu_fd, "kvm_run"));
}

class Guest {
 public:
  Guest(const Options& options, Memory& memory)
      : options_(options),
        kvm_fd_(open_kvm()),
        vm_fd_(must_ioctl(kvm_fd_, KVM_CREATE_VM, 0UL, "KVM_CREATE_VM")),
        vcpu_fd_(create_vcpu(vm_fd_, memory)),
        run_(map_run(kvm_fd_, vcpu_fd_)) {
    set_cpuid(kvm_fd_, vcpu_fd_);
    set_registers(vcpu_fd_, load_probe(options.probe, memory));
    write_start_info(memory, options.cmdline);
  }

  /// Runs to the guest's end and returns its exit status.
  int run() {
    entered_ns_ = monotonic_ns();
    while (status_ < 0) {
      if (::ioctl(vcpu_fd_, KVM_RUN, 0UL) < 0 && errno != EINTR) {
        die_errno("KVM_RUN");
      }
      handle_exit();
    }
    flush();
    return status_;
  }

 private:
  void handle_exit() {
    switch (run_->exit_reason) {
      case KVM_EXIT_IO:
        handle_port();
        break;
      case KVM_EXIT_MMIO:
        if (run_->mmio.is_write == 0) {
          std::memset(static_cast<void*>(run_->mmio.data), 0xff, sizeof(run_->mmio.data));
        }
        break;
      case KVM_EXIT_SHUTDOWN:
        status_ = kExitCrash;
        break;
      case KVM_EXIT_INTR:
        break;
      default:
        die(kExitSystem, "KVM_RUN ends by exit reason", number_text(run_->exit_reason).data());
    }
  }

  void handle_port() {
    auto* const data = reinterpret_cast<std::uint8_t*>(run_) + run_->io.data_offset;
    if (run_->io.direction == KVM_EXIT_IO_IN) {
      std::memset(data, run_->io.port == kCom1LineStatus ? kTransmitterEmpty : 0xff,
                  std::size_t{run_->io.size} * run_->io.count);
    } else {
      write_port(run_->io.port, *data);
    }
  }

  void write_port(std::uint16_t port, std::uint8_t value) {
    switch (port) {
      case kMarkPort:
        take_mark();
        break;
      case kCom1Data:
        line_[line_size_++] = static_cast<char>(value);
        if (value == '\n' || line_size_ == line_.size()) {
          flush();
        }
        break;
      case kSleepControl:
        status_ = kExitPowerOff;
        break;
      case kI8042Command:
        if (value == kI8042Reset) {
          status_ = kExitReboot;
        }
        break;
      case kPvpanic:
        status_ = kExitPanic;
        break;
      default:
        break;
    }
  }

  void take_mark() {
    const std::uint64_t now = monotonic_ns();
    if (marked_) {
      return;
    }
    marked_ = true;
    if (options_.start_ns != 0) {
      put(stdout,
          {"floor: first_entry_us=", number_text((entered_ns_ - options_.start_ns) / 1000).data(),
           "\nfloor: first_write_us=", number_text((now - options_.start_ns) / 1000).data(), "\n"});
    }
    if (options_.end_at_mark) {
      status_ = kExitPowerOff;
    }
  }

  void flush() {
    std::fwrite(line_.data(), 1, line_size_, stdout);
    std::fflush(stdout);
    line_size_ = 0;
  }

  const Options& options_;
  int kvm_fd_;
  int vm_fd_;
  int vcpu_fd_;
  kvm_run* run_;
  int status_ = -1;
  std::uint64_t entered_ns_ = 0;
  bool marked_ = false;
  std::array<char, 256> line_ = {};
  std::size_t line_size_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  Memory memory(options.memory_mib << 20);
  Guest guest(options, memory);
  return guest.run();
}
