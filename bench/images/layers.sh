# Run by build.sh in an empty directory: makes `oci`, the layout of $SERVICE in $VERSION, or `base.tar`.
# Three layers: Debian's minimal system, what the service runs on, the service with its files.
. "$IMAGES/lib.sh"

CREATED=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)

if [[ $SERVICE == base ]]; then
  make_tree base.tar "$VERSION" ''
  exit 0
fi

# A recipe may replace these three. The trees are whole each time: what belongs to the runtime layer
# is put into the service's tree, too, or it would count as removed there.
hooks=()
runtime_files() { :; }
service_files() { :; }
. "$IMAGES/recipes/$SERVICE.sh"
both_files() {
  runtime_files "$1"
  service_files "$1"
}

entry=$(jq -e --arg name "$SERVICE" '.[] | select(.name == $name)' "$IMAGES/services.json")
list() { jq -r --arg key "$1" '(.[$key] // []) | if type == "array" then .[] else . end' <<<"$entry"; }
mapfile -t runtime < <(list runtime)
mapfile -t packages < <(list packages)
joined() { (IFS=,; printf '%s' "$*"); }

make_tree runtime.tar "$VERSION" "$(joined "${runtime[@]}")" "${hooks[@]}"
make_tree full.tar "$VERSION" "$(joined "${runtime[@]}" "${packages[@]}")" "${hooks[@]}"

new_layout oci latest
umoci raw add-layer --image oci:latest --history.created "$CREATED" \
  --history.created_by 'Debian, minimal' "$CACHE/base-$VERSION/base.tar"
umoci unpack --image oci:latest bundle >/dev/null
add_tree bundle oci:latest runtime.tar runtime_files "runtime: ${runtime[*]}"
add_tree bundle oci:latest full.tar both_files "service: ${packages[*]}"
rm -rf bundle runtime.tar full.tar

options=()
each() {
  local option=$1 value
  while IFS= read -r value; do options+=("$option" "$value"); done < <(list "$2")
}
each --config.entrypoint entrypoint
each --config.cmd command
each --config.env env
each --config.user user
each --config.workingdir workdir
each --config.exposedports ports
umoci config --image oci:latest --created "$CREATED" --no-history \
  --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  --config.label "firstlight.bench.version=$VERSION" "${options[@]}"
finish_layout oci
