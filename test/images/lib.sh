# Shared by the image recipes: the machine's own Debian mirror, mmdebstrap, OCI layouts, the cache.
# What does not live here: what goes into an image (redis.sh, python.sh, layers.sh, base.sh).
#
# Every tool that writes a layer or an image here is independent of this project (mmdebstrap, GNU
# tar, umoci, skopeo), so that what firstlight makes of them can be compared with something.

# Newer files are dated back to this second, so that one state of the archive gives one image.
export SOURCE_DATE_EPOCH=1700000000
export LC_ALL=C.UTF-8

# The Debian lines of the machine's apt configuration, whatever format they are written in.
debian_sources() {
  local lines
  lines=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)' \
    'Created-By: Packages' | awk '$1 == "Debian" { print "deb", $2, $3, $4 }')
  if [[ -z $lines ]]; then
    echo 'no Debian package lists on this machine; run "apt-get update" as root' >&2
    return 1
  fi
  printf '%s\n' "$lines"
}

# mmdebstrap starts from an empty configuration: proxies and clock checks of this machine go along.
apt_options() {
  apt-config dump --format '%F "%v";%n' Acquire |
    grep -E '^Acquire::(https?::|Check-|Retries|ForceIPv)' | grep -v ' "";$' || true
}

# Codename of this machine's Debian.
debian_suite() {
  (. /etc/os-release && printf '%s' "$VERSION_CODENAME")
}

# make_rootfs FILE.tar PACKAGES(comma separated, may be empty): a Debian root filesystem.
make_rootfs() {
  local file=$1 packages=$2 options=() option
  while IFS= read -r option; do
    [[ -z $option ]] || options+=(--aptopt="$option")
  done < <(apt_options)
  [[ -z $packages ]] || options+=(--include="$packages")
  debian_sources >"$file.sources"
  if ! mmdebstrap --variant=minbase --mode=root "${options[@]}" "$(debian_suite)" "$file" \
    - <"$file.sources" 2>"$file.log"; then
    tail -n 20 "$file.log" >&2
    echo "mmdebstrap could not build $packages" >&2
    return 1
  fi
  rm -f "$file.sources" "$file.log"
}

# new_layout DIR TAG: an OCI layout with one image without layers.
new_layout() {
  umoci init --layout "$1"
  umoci new --image "$1:$2"
}

# add_layer DIR TAG FILE.tar: the tar becomes the next layer, unchanged.
add_layer() {
  umoci raw add-layer --image "$1:$2" "$3"
}

# finish_layout DIR: drops blobs that no image names any more.
finish_layout() {
  umoci gc --layout "$1" >/dev/null
}

# to_docker_archive LAYOUT TAG FILE.tar NAME:TAG
to_docker_archive() {
  skopeo copy --quiet --insecure-policy "oci:$1:$2" "docker-archive:$3:$4"
}
