#!/bin/sh
# Install the system packages that `make test-tokens` needs, where they are missing and
# apt is available. The tests of a token that is still missing are skipped, and say so.
set -eu
# shellcheck source-path=SCRIPTDIR source=../softhsm/apt.sh
. "$(dirname "$0")/../softhsm/apt.sh"

set -- # the packages to install
found /usr/bin/certutil || set -- "$@" libnss3-tools
found /usr/lib/*/libsoftokn3.so /usr/lib/*/nss/libsoftokn3.so /usr/lib64/libsoftokn3.so ||
    set -- "$@" libnss3
found /usr/sbin/pkcsslotd || set -- "$@" opencryptoki
found /usr/lib/*/p11-kit-proxy.so /usr/lib64/p11-kit-proxy.so ||
    set -- "$@" p11-kit-modules
# To build Kryoptic. Rust itself is not among them: Debian's is too old.
found /usr/bin/clang || set -- "$@" clang
found /usr/bin/pkg-config || set -- "$@" pkg-config
found /usr/include/openssl/ssl.h || set -- "$@" libssl-dev
found /usr/include/sqlite3.h || set -- "$@" libsqlite3-dev

[ $# -eq 0 ] || install_packages "$@" || echo "continuing without them" >&2
