#!/usr/bin/env bash
# Make a bare root, by debootstrap from the package sources of this machine:
#
#     tests/bare/minimal.sh ROOT [SUITE]    default: the release of this machine
#
# It installs packages and trusts certificates as this machine does.
set -euo pipefail

die() {
    echo "tests/bare/minimal.sh: $*" >&2
    exit 1
}

# The address of this machine's package source for a release.
mirror() {
    # shellcheck disable=SC2016 # the names are apt's, not the shell's
    apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
        awk -v suite="$1" '$2 == suite { print $1; exit }'
}

root=$1 suite=${2:-}
# shellcheck source=/dev/null
[ -n "$suite" ] || suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
source=$(mirror "$suite")
[ -n "$source" ] || die "apt knows no source of $suite; run apt-get update"
debootstrap --variant=minbase "$suite" "$root" "$source" >"$root.log" ||
    { cat "$root.log" >&2 && die "debootstrap failed"; }
rm -f "$root.log"
rm -f "$root/etc/apt/sources.list"
(cd /etc/apt && cp -a --parents sources.list sources.list.d trusted.gpg \
    trusted.gpg.d keyrings "$root/etc/apt" 2>/dev/null) || true
cp -an /usr/share/keyrings "$root/usr/share/"
# Proxies and the like, without what other packages hook into apt.
apt-config dump | grep -E '^Acquire::(Check-|http|https|ftp|Retries|Force)' \
    >"$root/etc/apt/apt.conf.d/00machine" || true
cp /etc/resolv.conf /etc/hosts "$root/etc/"
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
# ca-certificates, once installed, adds this to the bundle that it makes.
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    mkdir -p "$root/etc/ssl/certs" "$root/usr/local/share/ca-certificates"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    cp /etc/ssl/certs/ca-certificates.crt \
        "$root/usr/local/share/ca-certificates/machine.crt"
fi
