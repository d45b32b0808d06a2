# Python with a few modules, one of which maps libraries of many megabytes: a root filesystem tar as
# mmdebstrap writes it.
. "$IMAGES/lib.sh"

make_rootfs rootfs.tar python3,python3-numpy,python3-requests
