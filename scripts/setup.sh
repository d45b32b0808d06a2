#!/bin/bash
# Prepares a Debian 12 machine that has Node.js and npm: the Debian packages that are missing, then
# the npm packages. Does nothing, quickly, where all of it is there. The native part is built by
# the Makefile afterwards. Packages named as arguments are installed too: what only some targets need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The compiler and what npm's builds need; what runs containers; what the tests build images with
# and compare with.
packages=(
  make g++ python3 ca-certificates
  fuse3 libfuse2 runc crun containerd
  mmdebstrap debian-archive-keyring umoci skopeo docker-registry apache2-utils busybox-static
  zstd attr acl e2fsprogs libcap2-bin jq curl procps iproute2
  clang clang-format libclang-rt-14-dev
  "$@"
)

as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "setup: needs root for: $*; run it as root, or install sudo" >&2
    return 1
  fi
}

missing_packages() {
  local installed
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null |
    awk '$2 == "installed" { print $1 }') || true
  printf '%s\n' "${packages[@]}" | grep -vxF -f <(printf '%s\n' "$installed") || true
}

install_packages() {
  if ! command -v apt-get >/dev/null; then
    echo "setup: this is no Debian machine; install by hand: ${packages[*]}" >&2
    return 1
  fi
  local missing
  mapfile -t missing < <(missing_packages)
  # Without package lists, mmdebstrap would not know where to get an image from either.
  if [[ ${#missing[@]} -gt 0 || -z $(find /var/lib/apt/lists -name '*Packages*' -print -quit) ]]; then
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
  fi
  if [[ ${#missing[@]} -gt 0 ]]; then
    echo "setup: installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -q --no-install-recommends "${missing[@]}"
  fi
}

# True where node_modules holds exactly what the lock file says, install scripts included.
npm_is_current() {
  [[ -x node_modules/node/bin/node && -f node_modules/.package-lock.json ]] || return 1
  compgen -G 'node_modules/zstd-napi/build/Release/*.node' >/dev/null || return 1
  node_modules/node/bin/node -e '
    const fs = require("node:fs");
    const read = (file) => JSON.parse(fs.readFileSync(file, "utf8")).packages;
    const wanted = read("package-lock.json");
    const present = read("node_modules/.package-lock.json");
    for (const [path, entry] of Object.entries(wanted)) {
      if (path === "" || entry.optional || entry.link) continue;
      if (present[path]?.version !== entry.version) process.exit(1);
    }'
}

install_npm_packages() {
  if npm_is_current; then return; fi
  command -v npm >/dev/null || { echo 'setup: npm is missing; install Node.js 18 or newer with npm' >&2; return 1; }
  # zstd-napi is compiled here. Where this Node.js brings its headers along, nothing is downloaded for it.
  local prefix
  prefix=$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")
  if [[ -z ${npm_config_nodedir:-} && -f $prefix/include/node/node_api.h ]]; then
    export npm_config_nodedir=$prefix
  fi
  echo 'setup: npm ci'
  npm ci --no-audit --no-fund --loglevel=error
}

install_packages
install_npm_packages
