# shellcheck shell=sh
# Sourced by packages.sh and packages-tokens.sh.

# Return true if one of these paths exists.
found() {
    for path in "$@"; do
        [ ! -e "$path" ] || return 0
    done
    return 1
}

# Install these Debian packages, by sudo unless root, or end the script. Name them and
# return false on a system without apt, or for a user without sudo.
install_packages() {
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    if ! command -v apt-get >/dev/null ||
        { [ -n "$as_root" ] && ! command -v sudo >/dev/null; }; then
        echo "missing on this system, under the names Debian gives them: $*" >&2
        return 1
    fi
    echo "installing $*"
    set -- apt-get install --yes --quiet --no-install-recommends "$@"
    # A fresh machine has no package lists, an old one has outdated lists.
    $as_root "$@" >/dev/null || {
        $as_root apt-get update --quiet >/dev/null && $as_root "$@" >/dev/null
    } || exit 1
}
