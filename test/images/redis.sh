# Debian's redis-server on the minimal root filesystem: three layers, as OCI layout and docker-archive.
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

# A third layer, as images of services have it: an entrypoint that lets options alone be given.
mkdir -p entry/usr/local/bin
cat >entry/usr/local/bin/docker-entrypoint.sh <<'END'
#!/bin/sh
set -e
if [ "${1#-}" != "$1" ]; then
  set -- redis-server "$@"
fi
exec "$@"
END
chmod 0755 entry/usr/local/bin/docker-entrypoint.sh
tar -C entry --sort=name --numeric-owner --format=pax --mtime="@$SOURCE_DATE_EPOCH" -cf entry.tar usr
add_layer oci latest entry.tar
rm -rf entry entry.tar

umoci config --image oci:latest \
  --config.entrypoint docker-entrypoint.sh \
  --config.cmd redis-server --config.cmd --dir --config.cmd /var/lib/redis \
  --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  --config.env LANG=C.UTF-8 \
  --config.user redis --config.workingdir /var/lib/redis --config.exposedports 6379/tcp
finish_layout oci
to_docker_archive oci latest docker-archive.tar redis:test
