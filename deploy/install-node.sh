#!/bin/sh
# Installs firstlight on a machine as a system service, from the directory tree that a package or container image
# has it in. deploy/kubernetes.yaml runs it on every node; it works as well by hand, as root:
#
#   HOST_ROOT=/ SOURCE=/path/to/firstlight install-node.sh install [CONFIG [TOKEN]]
#   HOST_ROOT=/ install-node.sh uninstall
#
# CONFIG     becomes /etc/firstlight/config.toml
# TOKEN      becomes /etc/firstlight/token, for root alone; nothing happens where there is no such file
# HOST_ROOT  root directory of the machine, as it is seen from here (in the DaemonSet: /host)
# SOURCE     the tree to install; the one that this script stands in where it is not given
# HOST_RUN   what runs a program on the machine itself; in a container: nsenter --target 1 --mount ... --
#
# What is installed is never written to again. Each version has a directory of its own, made aside and renamed when
# it is whole; `current` is a link that is replaced by a rename. So whatever goes wrong, or is killed, at any moment:
# the machine has the old version or the new one. A version that a process still runs stays until a later install:
# the process that keeps the mounts of running containers outlives the daemon that has started it.
set -eu

: "${HOST_ROOT:?is not set: the root directory of the machine}"
root=${HOST_ROOT%/}
prefix=/opt/firstlight
base=$root$prefix
unit=firstlight.service
unit_file=$root/etc/systemd/system/$unit
config_file=$root/etc/firstlight/config.toml
token_file=$root/etc/firstlight/token
proc=${HOST_PROC:-/proc}

say() { echo "firstlight: $*"; }
fail() {
  echo "firstlight: $*" >&2
  exit 1
}

# Runs a program on the machine.
on_host() {
  # Split on purpose: it is a command with its arguments.
  # shellcheck disable=SC2086
  ${HOST_RUN:-} "$@"
}

# Puts a copy of file $2 in the place of $1, which readers see old or new, with mode $3 (644 where it is not given);
# `changed` says whether it differs.
replace() {
  rm -f "$1".new.*
  if cmp -s "$2" "$1"; then
    # Nobody but who is meant to keeps reading it.
    [ -z "${3:-}" ] || chmod "$3" "$1"
    return 0
  fi
  mkdir -p "$(dirname "$1")"
  (umask 077 && cp "$2" "$1.new.$$")
  chmod "${3:-644}" "$1.new.$$"
  sync "$1.new.$$"
  mv -T "$1.new.$$" "$1"
  say "$1 written"
  changed=yes
}

# Points a link of the prefix to a version: a new link is renamed over the old one, so that it is always there.
point() {
  ln -s "versions/$2" "$base/$1.new.$$"
  mv -T "$base/$1.new.$$" "$base/$1"
}

# The version that a link of the prefix points to; empty where there is none.
pointed() { basename "$(readlink "$base/$1" || true)"; }

# A name for exactly the files of a tree: their paths, contents, modes and links.
identity() {
  version=$(sed -n 's/^ *"version": *"\([0-9A-Za-z.+-]*\)".*/\1/p' "$1/package.json" | head -n 1)
  : "${version:?"$1/package.json names no version"}"
  hash=$(cd "$1" && {
    find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    find . ! -type f -printf '%p %y %l\n' -o -printf '%p %m\n' | LC_ALL=C sort
  } | sha256sum | cut -c 1-16)
  echo "$version-$hash"
}

# The names of processes' programs below the versions' directory, whichever mount namespace shows it.
programs() {
  for exe in "$proc"/[0-9]*/exe; do
    # Processes come and go, and kernel threads have none.
    readlink "$exe" 2>/dev/null || true
  done | grep -F "$prefix/versions/" || true
}

# Removes versions that nobody runs, but the current one and the one before it.
prune() {
  running=$(programs)
  for path in "$base"/versions/*/; do
    id=$(basename "$path")
    [ "$id" != "$(pointed current)" ] && [ "$id" != "$(pointed previous)" ] || continue
    case $running in
      *"$prefix/versions/$id/"*) say "version $id stays: a process runs it" ;;
      *)
        # Out of sight first: what is half removed must not look like a version.
        mv -T "${path%/}" "$base/versions/.old.$id"
        rm -rf "$base/versions/.old.$id"
        say "version $id removed"
        ;;
    esac
  done
}

# Brings the tree into a directory of its own; `id` is its name.
copy_version() {
  source=${SOURCE:-$(dirname "$(dirname "$(readlink -f "$0")")")}
  [ -x "$source/bin/firstlight" ] || fail "$source has no bin/firstlight: set SOURCE"
  id=$(identity "$source")
  mkdir -p "$base/versions"
  # One at a time; the lock goes with the process.
  exec 9>>"$base/.lock"
  flock -w 300 9 || fail "another install has held $base/.lock for five minutes"
  # What an install that was killed has left.
  rm -rf "$base"/versions/.incoming.* "$base"/versions/.old.* "$base"/*.new.*
  [ ! -d "$base/versions/$id" ] || return 0
  incoming=$base/versions/.incoming.$$
  mkdir "$incoming"
  cp -a "$source/." "$incoming/"
  sync -f "$incoming"
  mv -T "$incoming" "$base/versions/$id"
  say "version $id copied"
}

install_node() {
  config=${1:-}
  token=${2:-}
  changed=
  copy_version
  new=$id
  before=$(pointed current)
  if [ "$before" != "$new" ]; then
    point current "$new"
    changed=yes
  fi
  if [ -n "$token" ] && [ -s "$token" ]; then
    # The daemon reads it when it needs it: no reason to start it anew.
    before_token=$changed
    replace "$token_file" "$token" 600
    changed=$before_token
  fi
  [ -z "$config" ] || replace "$config_file" "$config"
  sed "s#^ExecStart=[^ ]*#ExecStart=$prefix/current/bin/firstlight#" \
    "$base/versions/$new/deploy/$unit" >"$base/unit.new.$$"
  replace "$unit_file" "$base/unit.new.$$"
  rm "$base/unit.new.$$"
  on_host systemctl daemon-reload
  on_host systemctl enable --quiet "$unit"
  # A service that runs what it should is left alone.
  verb=start
  [ -z "$changed" ] || verb=restart
  if ! on_host systemctl "$verb" "$unit"; then
    [ -n "$before" ] && [ "$before" != "$new" ] || fail "$unit does not start: journalctl -u $unit says why"
    point current "$before"
    on_host systemctl restart "$unit" || true
    fail "$new does not start (journalctl -u $unit says why); current is $before again"
  fi
  # Only now: a version that did not start is no reason to forget the one before.
  [ -z "$before" ] || [ "$before" = "$new" ] || point previous "$before"
  prune
  say "$new is installed and runs"
}

# How many images are mounted for containers.
count_mounts() { grep -c ' - fuse\.firstlight ' "$proc/1/mountinfo" || true; }

uninstall_node() {
  # The daemon takes away what no container stands on when it ends; what is left then is in use.
  [ ! -e "$unit_file" ] || on_host systemctl stop "$unit"
  mounted=$(count_mounts)
  if [ "$mounted" -ne 0 ]; then
    [ ! -e "$unit_file" ] || on_host systemctl start "$unit"
    fail "containers stand on $mounted mounted images: drain the machine, and try again"
  fi
  if [ -e "$unit_file" ]; then
    on_host systemctl disable --quiet "$unit"
    rm "$unit_file"
    on_host systemctl daemon-reload
  fi
  rm -rf "$base/current" "$base/previous" "$base/versions" "$base/.lock"
  rmdir "$base" 2>/dev/null || true
  say "removed; the configuration ($config_file) and the store (its root) are still there"
  [ ! -e "$token_file" ] || say "so is the token ($token_file): remove it, and its line on the server"
}

case ${1:-} in
  install) install_node "${2:-}" "${3:-}" ;;
  uninstall) uninstall_node ;;
  *) fail "usage: HOST_ROOT=DIR $0 install [CONFIG [TOKEN]] | uninstall" ;;
esac
