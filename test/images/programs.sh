# Programs that write a lot, on the minimal root filesystem: git, PostgreSQL, SQLite, fio, stress-ng; and
# real packages to install, as a repository of local files in /repo.
. "$IMAGES/lib.sh"

options=()
while IFS= read -r option; do
  [[ -z $option ]] || options+=(--aptopt="$option")
done < <(apt_options)
debian_sources >sources

# What is downloaded here is installed later, inside a mount, without a network.
cat >fetch.sh <<'END'
set -eu
mkdir -p "$1/repo"
cd "$1/repo"
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get download less nano vim-tiny vim-common
: >Packages
for deb in *.deb; do
  dpkg-deb -f "$deb" >>Packages
  printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" \
    "$(sha256sum "$deb" | cut -d' ' -f1)" >>Packages
done
END
if ! mmdebstrap --variant=minbase --mode=root "${options[@]}" \
  --include=git,postgresql-15,sqlite3,fio,stress-ng \
  --customize-hook="sh $PWD/fetch.sh \"\$1\"" \
  "$(debian_suite)" rootfs.tar - <sources 2>log; then
  tail -n 20 log >&2
  exit 1
fi
rm -f sources fetch.sh log
