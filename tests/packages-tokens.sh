#!/bin/sh
# Install what `make test-tokens` wants of the system, where it is missing and apt is
# here. The tests of a token that is missing all the same are skipped, and say so.
set -eu

found() {
    for path in "$@"; do
        [ ! -e "$path" ] || return 0
    done
    return 1
}

set -- # the packages to install
found /usr/bin/certutil || set -- "$@" libnss3-tools
found /usr/lib/*/libsoftokn3.so /usr/lib/*/nss/libsoftokn3.so /usr/lib64/libsoftokn3.so ||
    set -- "$@" libnss3
found /usr/sbin/pkcsslotd || set -- "$@" opencryptoki
found /usr/lib/*/p11-kit-proxy.so /usr/lib64/p11-kit-proxy.so || set -- "$@" p11-kit-modules
# To build Kryoptic. Rust itself is not among them: Debian's is too old.
found /usr/bin/clang || set -- "$@" clang
found /usr/bin/pkg-config || set -- "$@" pkg-config
found /usr/include/openssl/ssl.h || set -- "$@" libssl-dev
found /usr/include/sqlite3.h || set -- "$@" libsqlite3-dev

if [ $# -gt 0 ]; then
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    if command -v apt-get >/dev/null &&
        { [ -z "$as_root" ] || command -v sudo >/dev/null; }; then
        echo "installing $*"
        set -- apt-get install --yes --quiet --no-install-recommends "$@"
        $as_root "$@" >/dev/null || {
            $as_root apt-get update --quiet >/dev/null
            $as_root "$@" >/dev/null
        }
    else
        echo "missing on this system, under the names Debian gives them: $*" >&2
    fi
fi
