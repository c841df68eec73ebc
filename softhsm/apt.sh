# shellcheck shell=sh
# Sourced by setup.sh, and by packages.sh and packages-tokens.sh of the tests.

# Return true if one of these paths exists.
found() {
    for path in "$@"; do
        [ ! -e "$path" ] || return 0
    done
    return 1
}

# Install these Debian packages, by sudo unless root, or end the script. What is missing
# and what will run is said before. Return false on a system without apt, and at once
# for a user who may not install.
install_packages() {
    echo "missing on this system, under the names Debian gives them: $*" >&2
    command -v apt-get >/dev/null || return 1
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    set -- apt-get install --yes --quiet --no-install-recommends "$@"
    if [ -n "$as_root" ] && ! { command -v sudo >/dev/null && sudo true; }; then
        echo "this user may not install them; as root run: $*" >&2
        return 1
    fi
    echo "running: ${as_root:+$as_root }$*" >&2
    # A fresh machine has no package lists, an old one has outdated lists.
    $as_root "$@" >/dev/null || {
        $as_root apt-get update --quiet >/dev/null && $as_root "$@" >/dev/null
    } || exit 1
}
