# A Debian root filesystem with ping (security.capability) and six layers on top of it, which hold
# every kind of entry and every way in which a layer can change the ones below. GNU tar writes the
# layers, umoci puts them together. Formats: OCI layout, docker-archive, and a rootfs tar.
. "$IMAGES/lib.sh"

# pack LAYER FORMAT [TAR OPTION...]: the staging directory LAYER as LAYER.tar.
pack() {
  local layer=$1 format=$2
  shift 2
  tar -C "$layer" --sort=name --numeric-owner --format="$format" "$@" -cf "$layer.tar" .
}
PAX_XATTRS=(--xattrs --xattrs-include='*')

repeat() { printf "%0.s$1" $(seq "$2"); }

# --- layer 1: every kind of entry -------------------------------------------------------------
mkdir l1
l=l1/app
mkdir -p $l/{many,names,kinds,links,modes,times,xattrs,sizes,white,opaque/sub/deep,swap,dirattrs}

# A directory that no single reply can list.
(cd $l/many && seq -f 'entry-%06g.txt' 3000 | while read -r f; do echo "$f" >"$f"; done)

# Names: 255 bytes, deep paths, text in other scripts, bytes that are no text, shell-hostile ones.
echo long >"$l/names/$(repeat n 255)"
deep=$l/names/deep
for i in 1 2 3 4 5 6; do deep=$deep/$(repeat "$i" 60); done
mkdir -p "$deep"
echo deep >"$deep/file with a path of more than 256 bytes"
echo mid >"$l/names/deep/$(repeat 1 60)/$(repeat m 120)"
echo utf8 >"$l/names/größe-файл-文件-🚀"
mkdir "$l/names/"$'dir-\377\376'
echo bytes >"$l/names/"$'dir-\377\376/latin1-\344\366\374'
echo control >"$l/names/"$'new\nline\ttab\001'
echo odd >"$l/names/ leading space"
echo odd >"$l/names/-dash * ? \\ \" ' \$x"
echo odd >"$l/names/..."
echo odd >"$l/names/wh.not-a-whiteout"

# Kinds.
mkfifo -m 0620 $l/kinds/fifo
mknod -m 0660 $l/kinds/char c 1 3
mknod -m 0600 $l/kinds/char-large-minor c 240 1048575
mknod -m 0640 $l/kinds/block b 259 70000
ln -s target $l/kinds/dangling
ln -s /etc/passwd $l/kinds/absolute
ln -s "$(repeat s 300)" $l/kinds/long-target
ln -s $'bytes-\377' $l/kinds/byte-target
chown -h 1234:5678 $l/kinds/*
touch -h -d '2020-02-02 02:02:02.123456789' $l/kinds/dangling

# Hard links inside the layer, also to a symlink.
echo three names >$l/links/a
ln $l/links/a $l/links/b
mkdir $l/links/sub
ln $l/links/a $l/links/sub/c
ln -s somewhere $l/links/symlink-1
ln $l/links/symlink-1 $l/links/symlink-2
for n in one two three four; do echo "lower $n" >$l/links/cross-$n; done

# Modes and owners.
install -m 4755 -o 0 -g 0 /bin/true $l/modes/setuid
install -m 2755 -o 0 -g 42 /bin/true $l/modes/setgid
mkdir -m 1777 $l/modes/sticky
mkdir -m 2770 $l/modes/setgid-dir
install -m 0000 /dev/null $l/modes/none
install -m 7777 -o 65534 -g 65534 /bin/true $l/modes/all

# Times: nanoseconds, before 1970, after 2038.
for t in '2001-09-09 01:46:40.999999999' '1970-01-01 00:00:00.000000001' '1965-03-04 05:06:07.25' \
  '2100-01-01 00:00:00.5'; do
  touch -d "$t UTC" "$l/times/$t"
done

# Extended attributes on files and directories, with binary and empty values, and file capabilities.
echo x >$l/xattrs/file
setfattr -n user.text -v 'some text' $l/xattrs/file
setfattr -n user.binary -v 0x00ff0a3d00 $l/xattrs/file
setfattr -n user.large -v "$(repeat v 2000)" $l/xattrs/file
mkdir $l/xattrs/dir
setfattr -n user.on.directory -v yes $l/xattrs/dir
setfattr -n trusted.admin -v only $l/xattrs/dir
install -m 0755 /bin/true $l/xattrs/capable
setcap cap_net_raw,cap_net_bind_service=ep $l/xattrs/capable
ln $l/xattrs/capable $l/xattrs/capable-too

# Sizes: nothing, around the part size, large, sparse.
seeded() { python3 -c 'import hashlib, sys
sys.stdout.buffer.write(hashlib.shake_128(sys.argv[1].encode()).digest(int(sys.argv[2])))' "$1" "$2"; }
: >$l/sizes/empty-1
: >$l/sizes/empty-2
seeded 1 1 >$l/sizes/one-byte
seeded 2 1048575 >$l/sizes/1MiB-less-1
seeded 3 1048576 >$l/sizes/1MiB
seeded 4 1048577 >$l/sizes/1MiB-and-1
seeded 5 2500000 >$l/sizes/large
seeded 6 24000000 >$l/sizes/24MB
cp $l/sizes/large $l/sizes/same-content-as-large
truncate -s 8M $l/sizes/sparse
printf start | dd of=$l/sizes/sparse conv=notrunc status=none
printf middle | dd of=$l/sizes/sparse bs=1 seek=5000000 conv=notrunc status=none
truncate -s 3M $l/sizes/all-hole
truncate -s 40M $l/sizes/sparse-many-holes
for i in $(seq 0 39); do printf "piece $i" | dd of=$l/sizes/sparse-many-holes bs=1M seek="$i" conv=notrunc status=none; done

# What the next layers change.
for f in gone kept back; do echo "lower $f" >$l/white/$f; done
mkdir -p $l/white/dir-gone/below
echo x >$l/white/dir-gone/below/file
for f in one two; do echo "lower $f" >$l/opaque/$f; done
echo deep >$l/opaque/sub/deep/file
echo file >$l/swap/file-to-dir
mkdir $l/swap/dir-to-file
echo inside >$l/swap/dir-to-file/inside
mkdir $l/swap/dir-to-link
echo inside >$l/swap/dir-to-link/inside
ln -s /nowhere $l/swap/link-to-dir
mkfifo $l/swap/fifo-to-file
echo keep >$l/dirattrs/child
touch -d '2010-10-10 10:10:10.101010101 UTC' $l/white $l/opaque $l/swap $l/dirattrs $l
pack l1 pax "${PAX_XATTRS[@]}" --sparse

# --- layer 2: removes and replaces --------------------------------------------------------------
mkdir l2
l=l2/app
mkdir -p $l/{white,opaque,swap,dirattrs,links}
: >$l/white/.wh.gone
: >$l/white/.wh.back
: >$l/white/.wh.dir-gone
: >$l/opaque/.wh..wh..opq
echo 'upper three' >$l/opaque/three
mkdir $l/opaque/sub
echo 'upper sub' >$l/opaque/sub/new
mkdir $l/swap/file-to-dir
echo inside >$l/swap/file-to-dir/inside
echo now-a-file >$l/swap/dir-to-file
ln -s file-to-dir $l/swap/dir-to-link
mkdir $l/swap/link-to-dir
echo inside >$l/swap/link-to-dir/inside
echo now-a-file >$l/swap/fifo-to-file
chmod 0711 $l/dirattrs
chown 77:88 $l/dirattrs
setfattr -n user.changed -v layer-2 $l/dirattrs
touch -d '2011-11-11 11:11:11.111111111 UTC' $l/white $l/opaque $l/opaque/sub $l/swap $l/dirattrs $l
pack l2 pax "${PAX_XATTRS[@]}"

# --- layer 3: hard links to files of a layer below ----------------------------------------------
# The archive is written with both names, and then loses the member that holds the content.
mkdir -p l3/app/links
cp -a l1/app/links/cross-* l3/app/links/
ln l3/app/links/cross-one l3/app/links/linked-one
ln l3/app/links/cross-two l3/app/links/linked-two
ln l3/app/links/cross-two l3/app/links/linked-two-again
ln l3/app/links/cross-three l3/app/links/linked-three
tar -C l3 --sort=name --numeric-owner --format=pax --no-recursion -cf l3.tar \
  app/links/cross-{one,two,three} app/links/linked-{one,two,two-again,three}
tar --delete -f l3.tar app/links/cross-one app/links/cross-two app/links/cross-three

# --- layer 4: comes back, breaks a hard link, opens another opaque directory ----------------------
mkdir l4
l=l4/app
mkdir -p $l/{white/dir-gone,links/sub,swap/file-to-dir}
echo 'came back' >$l/white/back
echo 'another directory of that name' >$l/white/dir-gone/new
: >$l/links/.wh.a
: >$l/links/.wh.linked-three
echo 'one name of it has new content' >$l/links/cross-two
echo 'and c is a file of its own' >$l/links/sub/c
: >$l/swap/file-to-dir/.wh..wh..opq
echo 'all new' >$l/swap/file-to-dir/fresh
pack l4 gnu

# --- layer 5: GNU format with large owners, long names and links ----------------------------------
mkdir -p l5/app/gnu
l=l5/app/gnu
echo owner >$l/large-owner
chown 3000000:2147483000 $l/large-owner
echo long >"$l/$(repeat g 250)"
ln -s "$(repeat t 400)" $l/long-link
ln "$l/$(repeat g 250)" "$l/$(repeat h 200)"
pack l5 gnu

# --- layer 6: the oldest format, and attributes of the root --------------------------------------
mkdir -p l6/app/ustar
chmod 0751 l6
echo v7 >l6/app/ustar/plain
touch -d '2012-12-12 12:12:12 UTC' l6/app/ustar/plain l6/app/ustar l6/app l6
pack l6 ustar

make_rootfs base.tar iputils-ping,libcap2-bin
new_layout oci latest
for layer in base l1 l2 l3 l4 l5 l6; do add_layer oci latest "$layer.tar"; done
umoci config --image oci:latest --config.cmd /bin/bash --config.env LAYERS=seven --config.workingdir /app
finish_layout oci
to_docker_archive oci latest docker-archive.tar layers:test

# A root filesystem in the old GNU format, whose sparse entries have a header of their own that
# umoci does not read.
mkdir gnu
cp -a l1/app l5/app gnu/
tar -C gnu --sort=name --numeric-owner --format=gnu --sparse -cf rootfs-gnu.tar .
rm -rf gnu base.tar l[1-6] l[1-6].tar
