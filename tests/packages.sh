#!/bin/sh
# Install what the tests want of the system, where it is missing and apt is here.
# SoftHSM2 is needed; without the others the tests that want them are skipped.
set -eu

found() {
    for path in "$@"; do
        [ ! -e "$path" ] || return 0
    done
    return 1
}

set -- # the packages to install
found /usr/include/p11-kit-1/p11-kit/pkcs11.h || set -- "$@" libp11-kit-dev
found /usr/bin/gcc /usr/bin/cc || set -- "$@" gcc libc6-dev
found /usr/bin/softhsm2-util /usr/local/bin/softhsm2-util || set -- "$@" softhsm2
found /usr/bin/pkcs11-tool /usr/local/bin/pkcs11-tool || set -- "$@" opensc
found /usr/lib/*/pkcs11-spy.so /usr/lib64/pkcs11-spy.so \
    /usr/lib/*/pkcs11/pkcs11-spy.so /usr/lib64/pkcs11/pkcs11-spy.so \
    /usr/lib/pkcs11-spy.so || set -- "$@" opensc-pkcs11
[ $# -gt 0 ] || exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
if command -v apt-get >/dev/null && { [ -z "$as_root" ] || command -v sudo >/dev/null; }; then
    echo "installing $*"
    set -- apt-get install --yes --quiet --no-install-recommends "$@"
    $as_root "$@" >/dev/null || {
        $as_root apt-get update --quiet >/dev/null
        $as_root "$@" >/dev/null
    }
    exit 0
fi

echo "missing on this system, under the names Debian gives them: $*" >&2
case " $* " in
*" softhsm2 "*) exit 1 ;;
*) echo "going on without; the tests that want them are skipped" >&2 ;;
esac
