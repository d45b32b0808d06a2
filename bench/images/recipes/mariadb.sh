# MariaDB with an entrypoint that makes the system tables where there are none, as images of it do.
# Debian's server package would put a database of 130 MB into the image.
service_files() {
  chroot "$1" groupadd --system --gid 999 mysql
  chroot "$1" useradd --system --uid 999 --gid mysql --home-dir /var/lib/mysql --no-create-home mysql
  # Where useradd notes the day of the change.
  chroot "$1" chage --lastday 2023-11-14 mysql
  rm -f "$1"/etc/{passwd,group,shadow,gshadow}-
  local directory
  for directory in /var/lib/mysql /run/mysqld; do
    install -d -m 0755 "$1$directory"
    chroot "$1" chown mysql:mysql "$directory"
  done
  script "$1/usr/local/bin/docker-entrypoint.sh" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = mariadbd ] && [ ! -d /var/lib/mysql/mysql ]; then
  mariadb-install-db --datadir=/var/lib/mysql --skip-test-db --auth-root-authentication-method=normal
fi
exec "$@"
SCRIPT
}
