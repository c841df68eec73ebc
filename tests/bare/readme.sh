#!/bin/sh
# Install what README.md says that a bare Debian lacks, and follow the page.
set -eu

# shellcheck disable=SC2016 # the backticks are those of the page
install=$(sed -n 's/.*`\(apt-get install [^`]*\)`.*/\1/p' README.md | head -n 1)
[ -n "$install" ] || {
    echo 'README.md does not say any more what to install' >&2
    exit 1
}
echo "\$ $install"
apt-get -qq update
# What somebody would answer, as the tests have no terminal.
echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/99assume-yes
DEBIAN_FRONTEND=noninteractive sh -c "$install" >/dev/null
exec python3 -m tests.bare.readme
