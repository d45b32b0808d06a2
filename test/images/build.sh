#!/bin/bash
# build.sh NAME...: builds test images where the cache does not have them, and prints the directory
# of each. NAME is a recipe beside this file. The cache is .cache/images in the checkout; an image
# is built again when its recipe, lib.sh or the machine's package sources change.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${FIRSTLIGHT_IMAGE_CACHE:-$(cd "$here/../.." && pwd)/.cache/images}
. "$here/lib.sh"

# What an image depends on, as one hash.
key_of() {
  { cat "$here/lib.sh" "$here/base.sh" "$here/$1.sh"; debian_sources; } | sha256sum | cut -c1-64
}

# Builds NAME aside and renames it, so that an interrupted build leaves nothing half-made.
build() {
  local name=$1 key work
  key=$(key_of "$name")
  # One builder at a time for each image; others wait here and then find it done.
  exec {lock}>"$cache/$name.lock"
  flock "$lock"
  if [[ $(cat "$cache/$name/key" 2>/dev/null) != "$key" ]]; then
    echo "building the test image $name (once; kept in .cache/images)" >&2
    work=$cache/$name.building
    rm -rf "${work:?}"
    mkdir -p "$work"
    if ! (cd "$work" && IMAGES="$here" CACHE="$cache" WORK="$work" bash -euo pipefail "$here/$name.sh" >&2); then
      rm -rf "${work:?}"
      echo "building the test image $name failed" >&2
      exit 1
    fi
    printf '%s\n' "$key" >"$work/key"
    rm -rf "${cache:?}/${name:?}"
    mv "$work" "$cache/$name"
  fi
  exec {lock}>&-
  printf '%s\n' "$cache/$name"
}

if [[ $# -eq 0 ]]; then
  echo "usage: build.sh NAME...   (base, redis, python, layers)" >&2
  exit 2
fi
if [[ $(id -u) -ne 0 ]]; then
  echo "the test images hold device nodes and owners: run this as root" >&2
  exit 1
fi
mkdir -p "$cache"
for name in "$@"; do
  [[ -f $here/$name.sh && $name != lib && $name != build ]] || { echo "no image recipe $name" >&2; exit 2; }
  build "$name"
done
