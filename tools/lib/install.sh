# SPDX-License-Identifier: Apache-2.0
# Sourced by the tools: installs the Debian packages that a step needs, and only those missing.

# need PACKAGE… : all of them are installed afterwards, or the script ends with one line that says
# what to install by hand.
need() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      echo "missing packages; as root: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo -n)
  fi
  echo "installing ${#missing[@]} packages: ${missing[*]}" >&2
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "could not install: ${missing[*]}" >&2
    exit 1
  fi
  rm -f "$log"
}

build_packages=(
  g++ meson ninja-build pkg-config liburing-dev libcli11-dev libtomlplusplus-dev libspdlog-dev
  nlohmann-json3-dev libzstd-dev liblz4-dev liblzma-dev libbz2-dev zlib1g-dev libxxhash-dev
  libseccomp-dev libboost-dev
)
image_packages=(python3 busybox-static cpio kmod xz-utils lz4 zstd)
rootfs_packages=(mmdebstrap e2fsprogs)
test_packages=(
  xorriso
  catch2 procps strace acpica-tools clang-format-19 qemu-system-x86 mandoc groff-base zsh fish systemd
  python3-pyhcl xfsprogs
  "${image_packages[@]}" "${rootfs_packages[@]}"
)
kernel_packages=(make gcc flex bison bc libelf-dev xz-utils lz4 python3)
long_packages=(clang-tidy-19 clang-19 libclang-rt-19-dev "${kernel_packages[@]}")
