#!/bin/sh
# Make the default token: SoftHSM2 with a random PIN and one AES-256 key, and the
# configuration to serve it.
#
#     softhsm/setup.sh [DIR]          DIR is .dev of this project unless given
#     softhsm/setup.sh --install      install SoftHSM2 if it is missing, and no more
#
# HSM_KMS           the hsm-kms command (default: .venv/bin/hsm-kms)
# SOFTHSM2_MODULE   the SoftHSM2 module, if it is in an unusual place
#
# All files are in DIR. A second run changes nothing; after an interruption, the next
# run continues. For development and trials only: the keys of a software token are
# files on this machine.
set -eu
umask 077

label=hsm-kms
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
hsm_kms=${HSM_KMS:-$root/.venv/bin/hsm-kms}

# shellcheck source-path=SCRIPTDIR source=apt.sh
. "$root/softhsm/apt.sh"

say() { printf '%s\n' "setup.sh: $*" >&2; }
die() {
    say "$*"
    exit 1
}

# The token

find_module() {
    for path in \
        /usr/lib/softhsm/libsofthsm2.so \
        /usr/lib/*/softhsm/libsofthsm2.so \
        /usr/lib64/softhsm/libsofthsm2.so \
        /usr/lib64/pkcs11/libsofthsm2.so \
        /usr/lib64/libsofthsm2.so \
        /usr/lib/libsofthsm2.so \
        /usr/local/lib/softhsm/libsofthsm2.so; do
        if [ -r "$path" ]; then
            printf '%s\n' "$path"
            return
        fi
    done
}

install_softhsm() {
    if command -v apt-get >/dev/null; then
        install_packages softhsm2 || exit 1
        return
    fi
    for tool in 'dnf install softhsm' 'pacman -S softhsm' 'apk add softhsm'; do
        if command -v "${tool%% *}" >/dev/null; then
            die "SoftHSM2 is missing; as root run: $tool"
        fi
    done
    die "SoftHSM2 is missing; install it, or name its module in SOFTHSM2_MODULE"
}

# Files

# Write a file from standard input, as a whole or not at all.
write() {
    cat >"$dir/.$1.new"
    mv -- "$dir/.$1.new" "$dir/$1"
}

random_pin() { od -An -v -tx1 -N16 /dev/urandom | tr -d ' \n'; }

prepare_dir() {
    case $dir in
    *[\'\"\\%?#*[:cntrl:]]*) die "the path $dir contains a character that YAML, URLs or softhsm2.conf do not allow" ;;
    esac
    if [ ! -e "$dir/softhsm2.conf" ]; then
        others=$(find "$dir" -mindepth 1 ! -name '.*.new' | head -n 1)
        [ -z "$others" ] || die "$dir contains other files; give an empty directory"
    fi
    chmod 0700 "$dir"
}

# The socket is in DIR, unless its path would not fit into sockaddr_un.
choose_socket() {
    if [ ! -e "$dir/socket" ]; then
        socket=$dir/kms.sock
        if [ "$(printf %s "$socket" | wc -c)" -gt 107 ]; then
            short=$(mktemp -d "${XDG_RUNTIME_DIR:-/tmp}/hsm-kms.XXXXXX")
            socket=$short/kms.sock
        fi
        printf '%s\n' "$socket" | write socket
    fi
    socket=$(cat "$dir/socket")
    home=$(dirname -- "$socket")
    # A directory for temporary files is removed at a restart of the machine.
    [ -d "$home" ] || mkdir -m 0700 -- "$home"
    [ -O "$home" ] || die "another user owns $home; remove $dir/socket and $dir/config.yaml"
    # Where the one socket does not fit, the other does without.
    admin=null
    if [ "$home" = "$dir" ] && [ "$(printf %s "$dir/admin.sock" | wc -c)" -le 107 ]; then
        admin="'$dir/admin.sock'"
    fi
    [ "$home" = "$dir" ] || say "the path of $dir is too long for a socket; the socket is $socket"
}

write_softhsm_conf() {
    [ -e "$dir/softhsm2.conf" ] && return
    while IFS= read -r line; do
        case $line in
        *@DIR@*) printf '%s\n' "${line%%@DIR@*}$dir${line#*@DIR@}" ;;
        *) printf '%s\n' "$line" ;;
        esac
    done <"$root/softhsm/softhsm2.conf.template" | write softhsm2.conf
}

write_config() {
    cat <<YAML
version: 1
state_dir: '$dir/state'
listen: {socket: '$socket'}
apis:
  v2: {enabled: true}
  v1: {enabled: true}
token:
  module: '$module'
  token_label: $label
  pin_file: '$dir/pin'
  env: {SOFTHSM2_CONF: '$dir/softhsm2.conf'}
  shared: true  # this one server is all that uses the token
http: {listen: null, admin_socket: $admin}
log: {format: text}
YAML
}

write_encryption_config() {
    cat <<YAML
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [secrets]
    providers:
      - kms:
          apiVersion: v2
          name: hsm-kms
          endpoint: 'unix://$socket'
          timeout: 3s
      - identity: {}
YAML
}

has_key() {
    # A token without a key is what is expected here, so that is not shown.
    if ! keys=$("$hsm_kms" keys list --config "$1" -o json 2>"$dir/.keys.log"); then
        cat "$dir/.keys.log" >&2
        die "the keys of the token cannot be listed"
    fi
    rm -f "$dir/.keys.log"
    case $keys in
    *key_id*) return 0 ;;
    *) return 1 ;;
    esac
}

require_module() {
    module=${SOFTHSM2_MODULE:-$(find_module)}
    if [ -z "$module" ]; then
        install_softhsm
        module=$(find_module)
    fi
    [ -r "$module" ] || die "no SoftHSM2 module was found at ${module:-any of the usual places}; name it in SOFTHSM2_MODULE"
}

# config.yaml is written last: if it exists, everything else is complete.
make_all() {
    require_module
    prepare_dir
    write_softhsm_conf # marks the directory as ours, so it is written first
    mkdir -p -- "$dir/tokens" "$dir/state"
    choose_socket
    [ -s "$dir/so-pin" ] || random_pin | write so-pin
    [ -s "$dir/pin" ] || random_pin | write pin
    SOFTHSM2_CONF=$dir/softhsm2.conf "$python" "$root/softhsm/init_token.py" \
        "$module" "$label" "$dir/so-pin" "$dir/pin"
    write_encryption_config | write encryption-config.yaml
    write_config >"$dir/.config.yaml.new"
    has_key "$dir/.config.yaml.new" || "$hsm_kms" keys generate --config "$dir/.config.yaml.new"
    mv -- "$dir/.config.yaml.new" "$dir/config.yaml"
    say "made $dir"
}

check_all() {
    for name in softhsm2.conf socket so-pin pin tokens state encryption-config.yaml; do
        [ -e "$dir/$name" ] || die "$dir/$name is missing; remove $dir to start over"
    done
    grep -qF "'$dir/softhsm2.conf'" "$dir/config.yaml" ||
        die "$dir was created under another path; move it back, or remove it to start over"
    choose_socket
    say "$dir is complete; nothing to do"
}

[ $# -le 1 ] || die "usage: softhsm/setup.sh [DIR | --install]"
if [ "${1:-}" = --install ]; then
    require_module
    exit
fi
[ -x "$hsm_kms" ] || die "$hsm_kms does not exist; run make run, or name the command in HSM_KMS"
dir=${1:-$root/.dev}
[ -d "$dir" ] || mkdir -p -- "$dir"
dir=$(CDPATH='' cd -- "$dir" && pwd -P)
python=$(dirname -- "$hsm_kms")/python
[ -x "$python" ] || python=python3

if [ -e "$dir/config.yaml" ]; then
    check_all
else
    make_all
fi
