#!/usr/bin/env bash
# Run a command in a bare root: tests/bare/enter.sh ROOT USER DIRECTORY COMMAND
#
# To be called in mount and process namespaces of its own, in which all that it mounts
# and starts ends. The command finds /proc, /dev, Go and Rust where this machine has
# them, its settings for pip, Go and cargo, and its cache of pip; nothing else.
set -euo pipefail

root=$1 user=$2 directory=$3 command=$4
home=/root
[ "$user" = root ] || home=/home/$user

# Bind a directory of this machine, read-only.
bind() {
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
}

mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"

environment=(HOME="$home" USER="$user" LOGNAME="$user" TERM=dumb LANG=C.UTF-8)
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

if command -v go >/dev/null; then
    bind "$(go env GOROOT)" /opt/go
    path=/opt/go/bin:$path
    for name in GOPROXY GOSUMDB GONOSUMDB GONOPROXY GOPRIVATE GOINSECURE GOFLAGS; do
        environment+=("$name=$(go env "$name")")
    done
fi
if command -v rustc >/dev/null; then
    bind "$(rustc --print sysroot)" /opt/rust
    path=/opt/rust/bin:$path
    for file in config.toml config; do
        [ ! -e "${CARGO_HOME:-$HOME/.cargo}/$file" ] || install -D --mode 0644 \
            "${CARGO_HOME:-$HOME/.cargo}/$file" "$root/opt/cargo/$file"
    done
    [ ! -d "$root/opt/cargo" ] || cp -aT "$root/opt/cargo" "$root$home/.cargo"
fi

# Settings for pip, cargo and TLS, and which tests to run.
while IFS= read -r -d '' pair; do
    case ${pair%%=*} in
    PIP_CACHE_DIR | CARGO_HOME) ;;
    PIP_FIND_LINKS)
        [ ! -d "${pair#*=}" ] || bind "${pair#*=}" "${pair#*=}"
        environment+=("$pair")
        ;;
    PIP_* | CARGO_HTTP_* | CARGO_NET_* | CARGO_REGISTRIES_* | CARGO_SOURCE_* | \
        *_proxy | *_PROXY | SSL_CERT_* | *_CA_BUNDLE | GIT_SSL_CAINFO | \
        PYTEST_ARGS)
        environment+=("$pair")
        ;;
    esac
done < <(env -0)

# pip uses only a cache of its own user.
cache=${PIP_CACHE_DIR:-$HOME/.cache/pip}
if [ "$user" = root ] && [ -d "$cache" ]; then
    mkdir -p "$root/root/.cache/pip"
    mount --bind "$cache" "$root/root/.cache/pip"
fi

mkdir -p "$root/.machine"
cd "$root"
pivot_root . .machine
cd /
umount --lazy /.machine
rmdir /.machine
# Not by exec: this shell is process 1 here, and reaps what loses its parent.
code=0
runuser --user "$user" -- \
    env --ignore-environment --chdir="$directory" "${environment[@]}" PATH="$path" \
    sh -c "$command" || code=$?
exit "$code"
