# nginx with Debian's default site, its logs on the container's own output, on IPv4 alone: a machine
# without IPv6 would keep it from starting.
service_files() {
  sed -i '/listen \[::\]/d' "$1/etc/nginx/sites-available/default"
  ln -sf /dev/stdout "$1/var/log/nginx/access.log"
  ln -sf /dev/stderr "$1/var/log/nginx/error.log"
}
