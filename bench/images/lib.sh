# Shared by the recipes of service images: root filesystems of Debian packages in two versions, and
# the layers made of them. What does not live here: what goes into an image (services.json and
# recipes/), the Debian mirror and umoci's commands (test/images/lib.sh).
#
# Every tool that writes a layer or an image is independent of this project.
. "$TEST_IMAGES/lib.sh"

# debian_lines old|new: bookworm's release alone, or with its security and updates suites.
debian_lines() {
  local suite
  suite=$(debian_suite)
  case $1 in
    old) debian_sources | awk -v suite="$suite" '$3 == suite' ;;
    new) debian_sources ;;
  esac
}

# make_tree FILE.tar VERSION PACKAGES(comma separated, may be empty) [HOOK...]: a Debian root
# filesystem. A hook is a shell line; it finds the tree as "$1" once dpkg works in it.
make_tree() {
  local file=$1 version=$2 packages=$3 options=() line
  shift 3
  while IFS= read -r line; do
    [[ -z $line ]] || options+=(--aptopt="$line")
  done < <(apt_options)
  for line in "$@"; do options+=(--essential-hook="$line"); done
  [[ -z $packages ]] || options+=(--include="$packages")
  debian_lines "$version" >"$file.sources"
  if ! mmdebstrap --variant=minbase --mode=root "${options[@]}" "$(debian_suite)" "$file" \
    - <"$file.sources" 2>"$file.log"; then
    tail -n 20 "$file.log" >&2
    echo "mmdebstrap could not build $packages ($version)" >&2
    return 1
  fi
  rm -f "$file.sources" "$file.log"
}

# add_tree BUNDLE IMAGE TREE.tar FUNCTION COMMENT: what differs in the tree, after FUNCTION has put its
# own files into it, becomes the next layer. BUNDLE is what umoci unpacked of the layers so far.
add_tree() {
  local bundle=$1 image=$2 tree=$3 function=$4 comment=$5
  find "$bundle/rootfs" -mindepth 1 -delete
  tar -C "$bundle/rootfs" --numeric-owner --xattrs --xattrs-include='*' -xpf "$tree"
  "$function" "$bundle/rootfs"
  # The recipe's own files, dated as mmdebstrap dates those of packages.
  find "$bundle/rootfs" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
  umoci repack --image "$image" --refresh-bundle --history.created "$CREATED" \
    --history.created_by "$comment" "$bundle" >/dev/null
}

# For recipes: an executable file of the image, from standard input.
script() {
  mkdir -p "$(dirname "$1")"
  cat >"$1"
  chmod 0755 "$1"
}
