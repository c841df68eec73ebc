#!/bin/sh
# Install the system packages that `make test-node` needs, where they are missing and
# apt is available: to build and run the image, and for the containers of a kubelet.
set -eu
# shellcheck source-path=SCRIPTDIR source=../softhsm/apt.sh
. "$(dirname "$0")/../softhsm/apt.sh"

set -- # the packages to install
found /usr/bin/buildah /usr/local/bin/buildah || set -- "$@" buildah
found /usr/sbin/debootstrap || set -- "$@" debootstrap
found /usr/share/keyrings/debian-archive-keyring.gpg || set -- "$@" debian-archive-keyring
found /usr/bin/containerd /usr/local/bin/containerd || set -- "$@" containerd
found /usr/bin/podman /usr/local/bin/podman || set -- "$@" podman
found /usr/sbin/runc /usr/bin/runc /usr/local/sbin/runc || set -- "$@" runc
found /usr/bin/systemd-tmpfiles || set -- "$@" systemd

[ $# -eq 0 ] || install_packages "$@" || echo "continuing without them" >&2
