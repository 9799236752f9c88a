// SPDX-License-Identifier: Apache-2.0
#include "src/cloud_seed.h"

#include <array>
#include <cstdint>
#include <map>
#include <string_view>
#include <vector>

#include <fcntl.h>

#include "tests/disks/directory.h"

namespace vireo {
namespace {

constexpr std::size_t kSector = 2048;

std::string bytes_of(const UniqueFd& seed) {
  const auto size = regular_file_size(seed.get());
  REQUIRE(size);
  std::string bytes(*size, '\0');
  REQUIRE(read_full_at(seed.get(), std::as_writable_bytes(std::span(bytes)), 0));
  return bytes;
}

/// A little-endian number in an ISO 9660 structure.
std::uint32_t number_at(const std::string& iso, std::size_t at) {
  std::uint32_t number = 0;
  for (std::size_t i = 4; i-- > 0;) {
    number = number << 8 | static_cast<std::uint8_t>(iso.at(at + i));
  }
  return number;
}

/// The files of the Joliet tree, which has names of 16 bits.
std::map<std::string, std::string> files_of(const std::string& iso) {
  std::size_t descriptor = 16 * kSector;
  while (iso.at(descriptor) != 2) {  // supplementary volume descriptor
    descriptor += kSector;
    REQUIRE(iso.at(descriptor) != -1);  // their end
  }
  CHECK(iso.substr(descriptor + 88, 2) == "%/");  // Joliet's escape sequence
  const std::size_t root = descriptor + 156;
  const std::size_t start = number_at(iso, root + 2) * kSector;
  std::map<std::string, std::string> files;
  for (std::size_t at = start; at < start + number_at(iso, root + 10) && iso.at(at) != 0;
       at += static_cast<std::uint8_t>(iso.at(at))) {
    std::string name;
    for (int i = 1; i < iso.at(at + 32); i += 2) {
      name += iso.at(at + 33 + static_cast<std::size_t>(i));
    }
    if (!name.empty()) {
      files[name.substr(0, name.find(';'))] =
          iso.substr(number_at(iso, at + 2) * kSector, number_at(iso, at + 10));
    }
  }
  return files;
}

std::string label_of(const std::string& iso) {
  CHECK(iso.substr(16 * kSector, 6) ==
        "\x01"
        "CD001");
  const std::string label = iso.substr(16 * kSector + 40, 32);
  return label.substr(0, label.find_last_not_of(' ') + 1);
}

/// Each of the programs that is installed, alone in a directory.
class Programs {
 public:
  Programs() {
    for (const std::string_view name : {"xorrisofs", "genisoimage", "mkisofs"}) {
      const std::array names = {name};
      const std::string path = find_program(program_directories(), names);
      if (!path.empty()) {
        const std::string directory = directory_ / std::string(name);
        std::filesystem::create_directory(directory);
        std::filesystem::create_symlink(path, directory + "/" + std::string(name));
        all.push_back(directory);
      }
    }
    if (all.empty()) {
      WARN("wants xorriso or genisoimage, and neither is installed");
    }
  }
  std::vector<std::string> all;

 private:
  Directory directory_;
};

constexpr const char* kUserData = "#cloud-config\nhostname: \xc3\xa4\n";

UniqueFd made(const CloudInitConfig& cloud_init, const std::string& name,
              const std::string& directory) {
  const std::array directories = {directory};
  Result<UniqueFd> seed = make_cloud_seed(cloud_init, name, directories);
  INFO((seed ? "" : seed.error().message()));
  REQUIRE(seed);
  return std::move(*seed);
}

TEST_CASE("cloud seed: an ISO with the label cidata and the three texts") {
  for (const std::string& program : Programs().all) {
    INFO(program);
    const CloudInitConfig texts{.seed = "",
                                .user_data = kUserData,
                                .meta_data = "instance-id: a\n",
                                .network_config = std::string(300'000, 'n')};
    const std::string iso = bytes_of(made(texts, "web-1", program));
    CHECK(iso.size() % kSector == 0);
    CHECK(label_of(iso) == "cidata");
    CHECK(files_of(iso) ==
          std::map<std::string, std::string>{{"user-data", texts.user_data},
                                             {"meta-data", texts.meta_data},
                                             {"network-config", texts.network_config}});
    // Rock Ridge's names, which are of 8 bits.
    CHECK(iso.find("user-data") != std::string::npos);
    CHECK(iso.find("network-config") != std::string::npos);
  }
}

TEST_CASE("cloud seed: without meta-data, another text or name is another instance") {
  for (const std::string& program : Programs().all) {
    INFO(program);
    const auto meta_data = [&program](const CloudInitConfig& texts, const std::string& name) {
      const auto files = files_of(bytes_of(made(texts, name, program)));
      CHECK(files.contains("network-config") == !texts.network_config.empty());
      return files.at("meta-data");
    };
    CloudInitConfig texts{
        .seed = "", .user_data = kUserData, .meta_data = "", .network_config = ""};
    const std::string first = meta_data(texts, "web_1");
    CHECK(first.starts_with("instance-id: iid-vireo-"));
    CHECK(first.ends_with("\nlocal-hostname: \"web-1\"\n"));
    CHECK(meta_data(texts, "web_1") == first);
    CHECK(meta_data(texts, "").find("local-hostname") == std::string::npos);
    CHECK(meta_data(texts, std::string(128, 'a')).ends_with("\"" + std::string(63, 'a') + "\"\n"));
    const std::string id = first.substr(0, first.find('\n'));
    CHECK_FALSE(meta_data(texts, "web_2").starts_with(id));
    texts.network_config = "version: 2\n";
    CHECK_FALSE(meta_data(texts, "web_1").starts_with(id));
    texts = {.seed = "", .user_data = "#!", .meta_data = "", .network_config = ""};
    CHECK_FALSE(meta_data(texts, "web_1").starts_with(id));
  }
}

TEST_CASE("cloud seed: the same texts are the same bytes, where the program can") {
  for (const std::string& program : Programs().all) {
    const CloudInitConfig texts{
        .seed = "", .user_data = kUserData, .meta_data = "", .network_config = ""};
    const std::string first = bytes_of(made(texts, "web-1", program));
    ::usleep(1'100'000);  // the ISO's times have hundredths of seconds; a file's, seconds
    const std::string second = bytes_of(made(texts, "web-1", program));
    CHECK(first.size() == second.size());
    if (program.ends_with("xorrisofs")) {
      CHECK((first == second));  // without either in the message
    }
  }
}

/// Temporary directories of seeds.
std::size_t left_behind() {
  std::size_t count = 0;
  for (const char* const parent : {"/dev/shm", "/tmp"}) {
    for (const auto& entry : std::filesystem::directory_iterator(parent)) {
      count += entry.path().filename().string().starts_with("vireo-seed.") ? 1U : 0U;
    }
  }
  return count;
}

TEST_CASE("cloud seed: nobody can change it any more") {
  for (const std::string& program : Programs().all) {
    const UniqueFd seed = made(
        {.seed = "", .user_data = kUserData, .meta_data = "", .network_config = ""}, "", program);
    CHECK(::pwrite(seed.get(), "x", 1, 0) == -1);
    CHECK(::ftruncate(seed.get(), 0) == -1);
    CHECK((::fcntl(seed.get(), F_GETFD) & FD_CLOEXEC) != 0);
  }
}

TEST_CASE("cloud seed: without a program, or where it fails, one line says so") {
  const Directory programs;
  const std::array search = {programs.path};
  const auto refusal = [&search] {
    const auto seed = make_cloud_seed(
        {.seed = "", .user_data = kUserData, .meta_data = "", .network_config = ""}, "", search);
    REQUIRE_FALSE(seed);
    CHECK(seed.error().code() == ErrorCode::kSystem);
    return seed.error().message();
  };
  CHECK(refusal() ==
        "cloud_init: nothing is there that makes the seed; install the package xorriso or "
        "genisoimage, or make an ISO yourself and name it as cloud_init.seed");
  const std::size_t before = left_behind();
  programs.write("mkisofs", "#!/bin/sh\necho iso; echo 'no good' >&2; exit 3\n", 0755);
  CHECK(refusal() == "cloud_init: mkisofs failed (3): no good");
  programs.write("genisoimage", "#!/bin/sh\n", 0755);
  CHECK(refusal().ends_with("genisoimage: made an empty ISO"));
  // The directory is there, and nobody else's to read, while the program runs.
  programs.write("xorrisofs", "#!/bin/sh\nfor last; do :; done\nstat -c %a $last >&2\nexit 1\n",
                 0755);
  CHECK(refusal() == "cloud_init: xorrisofs failed (1): 700");
  CHECK(left_behind() == before);
}

}  // namespace
}  // namespace vireo
