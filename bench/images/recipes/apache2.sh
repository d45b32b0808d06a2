# apache2 with Debian's default site and its logs on the container's own output.
service_files() {
  local log
  for log in access other_vhosts_access; do ln -sf /dev/stdout "$1/var/log/apache2/$log.log"; done
  ln -sf /dev/stderr "$1/var/log/apache2/error.log"
  echo 'ServerName localhost' >"$1/etc/apache2/conf-enabled/servername.conf"
}
