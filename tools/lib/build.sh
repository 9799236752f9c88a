# SPDX-License-Identifier: Apache-2.0
# Sourced by the tools: builds a configuration of the tree, quietly unless it fails.

# build_tree DIR "TARGET…" MESON_ARGUMENT… : DIR is configured if it is not, and the targets (all, if
# none is named) are built. What the tools said is in DIR.log.
build_tree() {
  local dir=$1 targets=$2 began=$SECONDS
  shift 2
  mkdir -p "$(dirname "$dir")"
  echo "building $(basename "$dir") …" >&2
  # shellcheck disable=SC2086 # targets are words
  if ! { [ -e "$dir/build.ninja" ] || meson setup "$dir" "$PWD" "$@"; } >"$dir.log" 2>&1 ||
    ! ninja -C "$dir" $targets >>"$dir.log" 2>&1; then
    # What failed stands above what else was under way.
    grep -E -A 20 '^FAILED|ERROR|error:' "$dir.log" | head -n 60 >&2 || tail -n 40 "$dir.log" >&2
    echo "building $(basename "$dir") failed; all of it: $dir.log" >&2
    exit 1
  fi
  echo "building $(basename "$dir") took $((SECONDS - began)) s" >&2
}
release_arguments=(-Dwerror=true --buildtype=release)
test_arguments=(-Dwerror=true -Dtests=true -Db_lto=false)
