#!/bin/sh
# Install the system packages that `make test-deb` needs, where they are missing and apt
# is available: to build the package, and to make a bare root.
set -eu
# shellcheck source-path=SCRIPTDIR source=../softhsm/apt.sh
. "$(dirname "$0")/../softhsm/apt.sh"

set -- # the packages to install
found /usr/bin/dpkg-shlibdeps || set -- "$@" dpkg-dev
found /usr/bin/objdump || set -- "$@" binutils
found /usr/bin/lintian || set -- "$@" lintian
found /usr/sbin/debootstrap || set -- "$@" debootstrap
found /usr/share/keyrings/debian-archive-keyring.gpg || set -- "$@" debian-archive-keyring

[ $# -eq 0 ] || install_packages "$@" || echo "continuing without them" >&2
