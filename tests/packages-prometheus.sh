#!/bin/sh
# Unpack Debian's Prometheus into the cache, without installing it: the package would
# start a server. Does nothing if it is installed or unpacked already.
set -eu

command -v promtool >/dev/null && command -v prometheus >/dev/null && exit 0
target=${XDG_CACHE_HOME:-$HOME/.cache}/hsm-kms/prometheus
[ ! -x "$target/usr/bin/promtool" ] || exit 0
command -v apt-get >/dev/null || {
    echo "Prometheus is missing; the tests that need it are skipped" >&2
    exit 0
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
cd "$scratch"
apt-get download --quiet --quiet prometheus 2>/dev/null || {
    echo "apt-get download prometheus failed; the tests that need it are skipped" >&2
    exit 0
}
mkdir -p "$(dirname "$target")"
# Beside each other, runs must not see half of it.
dpkg-deb -x prometheus_*.deb unpacked
rm -rf "$target.new.$$"
mv unpacked "$target.new.$$"
mv -T "$target.new.$$" "$target" 2>/dev/null || rm -rf "$target.new.$$"
