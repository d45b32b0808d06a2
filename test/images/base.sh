# Debian's minimal root filesystem: the lowest layer of the others.
. "$IMAGES/lib.sh"

make_rootfs base.tar ''
