# PostgreSQL with an entrypoint that makes the database cluster where there is none, as images of it
# do: the first start of a container runs initdb.
hooks=('mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"')

service_files() {
  script "$1/usr/local/bin/docker-entrypoint.sh" <<'SCRIPT'
#!/bin/sh
set -e
PATH=/usr/lib/postgresql/15/bin:$PATH
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --username=postgres --auth=trust "$PGDATA"
fi
exec "$@"
SCRIPT
  install -d -m 0700 "$1/var/lib/postgresql/data"
  # For its socket; what packages have in /run does not reach an image.
  install -d -m 2775 "$1/run/postgresql"
  chroot "$1" chown postgres:postgres /var/lib/postgresql/data /run/postgresql
}
