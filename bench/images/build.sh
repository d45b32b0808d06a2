#!/bin/bash
# build.sh SERVICE [old|new]: builds the image of a service where the cache does not have it, and
# prints its OCI layout (tag "latest"). `all` builds every service in both versions.
#
#   old   Debian 12 as released (suite bookworm alone)
#   new   with its security and updates suites (the default)
#
# services.json says which packages an image holds, and how it is run; recipes/SERVICE.sh adds files
# of its own. The cache is .cache/services in the checkout; an image is built again when its recipe,
# its entry in services.json, a shared script or the machine's package sources change.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
cache=${FIRSTLIGHT_SERVICE_CACHE:-$checkout/.cache/services}
TEST_IMAGES=$checkout/test/images
. "$here/lib.sh"

# The entry of a service; fails where there is none.
entry_of() {
  jq -e --arg name "$1" '.[] | select(.name == $name)' "$here/services.json"
}

# What an image depends on, as one hash.
key_of() {
  local name=$1 version=$2
  {
    cat "$TEST_IMAGES/lib.sh" "$here/lib.sh" "$here/layers.sh"
    debian_lines "$version"
    if [[ $name != base ]]; then
      # How it is waited for is no part of the image.
      entry_of "$name" | jq -S 'del(.ready, .mounts)'
      cat "$here/recipes/$name.sh"
      if [[ -d $here/$name ]]; then find "$here/$name" -type f | sort | xargs cat; fi
    fi
  } | sha256sum | cut -c1-64
}

# Builds aside and renames, so that an interrupted build leaves nothing half-made.
build() {
  local name=$1 version=$2 key work
  local id=$name-$version
  key=$(key_of "$name" "$version")
  # One builder at a time for each image; others wait here and then find it done.
  exec {lock}>"$cache/$id.lock"
  flock "$lock"
  if [[ $(cat "$cache/$id/key" 2>/dev/null) != "$key" ]]; then
    echo "building the service image $id (once; kept in .cache/services)" >&2
    work=$cache/$id.building
    rm -rf "${work:?}"
    mkdir -p "$work"
    if ! (cd "$work" && SERVICE="$name" VERSION="$version" CACHE="$cache" IMAGES="$here" \
      TEST_IMAGES="$TEST_IMAGES" bash -euo pipefail "$here/layers.sh" >&2); then
      rm -rf "${work:?}"
      echo "building the service image $id failed" >&2
      exit 1
    fi
    printf '%s\n' "$key" >"$work/key"
    rm -rf "${cache:?}/${id:?}"
    mv "$work" "$cache/$id"
  fi
  exec {lock}>&-
}

usage() {
  echo "usage: build.sh SERVICE [old|new]   ($(jq -r '[.[].name] | join(", ")' "$here/services.json"); or all)" >&2
  exit 2
}

name=${1:-} version=${2:-new}
[[ -n $name && $version =~ ^(old|new)$ ]] || usage
[[ $name == all || $name == base ]] || entry_of "$name" >/dev/null || usage
if [[ $(id -u) -ne 0 ]]; then
  echo "the service images hold files of many owners: run this as root" >&2
  exit 1
fi
mkdir -p "$cache"
if [[ $name == all ]]; then
  for name in $(jq -r '.[].name' "$here/services.json"); do
    for version in old new; do "$here/build.sh" "$name" "$version"; done
  done
  exit 0
fi
[[ $name == base ]] || build base "$version"
build "$name" "$version"
if [[ $name == base ]]; then printf '%s\n' "$cache/base-$version"; else printf '%s\n' "$cache/$name-$version/oci"; fi
