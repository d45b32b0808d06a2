# Debian's redis-server on the minimal root filesystem: two layers, as OCI layout and docker-archive.
. "$IMAGES/lib.sh"

base=$("$IMAGES/build.sh" base)
make_rootfs full.tar redis-server

new_layout oci latest
add_layer oci latest "$base/base.tar"

# The second layer is what umoci finds changed after the whole tree has been replaced.
umoci unpack --image oci:latest bundle >/dev/null
find bundle/rootfs -mindepth 1 -delete
tar -C bundle/rootfs --numeric-owner --xattrs --xattrs-include='*' -xpf full.tar
umoci repack --image oci:latest --refresh-bundle bundle >/dev/null
rm -rf bundle full.tar

umoci config --image oci:latest \
  --config.entrypoint /usr/bin/redis-server \
  --config.cmd --dir --config.cmd /var/lib/redis --config.cmd --appendonly --config.cmd no \
  --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  --config.env LANG=C.UTF-8 \
  --config.user redis --config.workingdir /var/lib/redis --config.exposedports 6379/tcp
finish_layout oci
to_docker_archive oci latest docker-archive.tar redis:test
