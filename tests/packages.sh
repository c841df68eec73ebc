#!/bin/sh
# Install the system packages that the tests need, where they are missing and apt is
# available. SoftHSM2 is required; without the others, the tests that need them are
# skipped.
set -eu
# shellcheck source-path=SCRIPTDIR source=../softhsm/apt.sh
. "$(dirname "$0")/../softhsm/apt.sh"

set -- # the packages to install
found /usr/include/p11-kit-1/p11-kit/pkcs11.h || set -- "$@" libp11-kit-dev
found /usr/bin/gcc /usr/bin/cc || set -- "$@" gcc libc6-dev
found /usr/bin/softhsm2-util /usr/local/bin/softhsm2-util || set -- "$@" softhsm2
found /usr/bin/pkcs11-tool /usr/local/bin/pkcs11-tool || set -- "$@" opensc
found /usr/lib/*/pkcs11-spy.so /usr/lib64/pkcs11-spy.so \
    /usr/lib/*/pkcs11/pkcs11-spy.so /usr/lib64/pkcs11/pkcs11-spy.so \
    /usr/lib/pkcs11-spy.so || set -- "$@" opensc-pkcs11
found /usr/bin/ip /usr/sbin/ip /sbin/ip || set -- "$@" iproute2
found /usr/bin/kill /bin/kill || set -- "$@" procps
found /usr/bin/mandoc || set -- "$@" mandoc
found /usr/bin/systemd-analyze || set -- "$@" systemd

[ $# -eq 0 ] || install_packages "$@" || case " $* " in
*" softhsm2 "*) exit 1 ;;
*) echo "going on without; the tests that need them are skipped" >&2 ;;
esac
