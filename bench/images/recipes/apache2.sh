# apache2 with Debian's default site and its logs on the container's own output.
service_files() {
  # For its process id and its locks; what packages have in /run does not reach an image.
  install -d "$1/run/apache2" "$1/run/lock/apache2"
  local log
  for log in access other_vhosts_access; do ln -sf /dev/stdout "$1/var/log/apache2/$log.log"; done
  ln -sf /dev/stderr "$1/var/log/apache2/error.log"
  echo 'ServerName localhost' >"$1/etc/apache2/conf-enabled/servername.conf"
}
