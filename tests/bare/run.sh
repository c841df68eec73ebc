#!/usr/bin/env bash
# Prove on a bare Debian that a fresh machine lacks nothing: `make test-bare`.
#
#     tests/bare/run.sh [STEP...]     all steps unless some are named
#
# Each step runs in a root of its own, made by debootstrap from the package sources
# of this machine, on a clean clone of HEAD. Everything that a step mounts or starts
# ends with the step; several runs do not disturb each other.
#
# BARE_SUITE    the release to install (default: this machine's)
# PYTEST_ARGS   passed to the make targets, to run some of the tests only
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd -P)
project=$(cd "$here/../.." && pwd -P)

# What runs in the clone, by step. A skipped test would mean that something is missing;
# only a user who is not root may skip what needs root. `ci-all` takes an hour and is
# run only by name.
declare -A commands=(
    [readme]='tests/bare/readme.sh'
    [run]='tests/bare/served.sh'
    [test]='HSM_KMS_REQUIRE=all make test'
    [test-faults]='HSM_KMS_REQUIRE=all make test-faults'
    [test-tokens]='HSM_KMS_REQUIRE=all make test-tokens'
    [ci]='.ci/run install'
    [user-run]='tests/bare/served.sh'
    [user-test]='make test'
    [ci-all]='.ci/run'
)
steps=(readme run test test-faults test-tokens ci user-run user-test)

die() {
    echo "tests/bare/run.sh: $*" >&2
    exit 1
}

[ $# -eq 0 ] || steps=("$@")
for step in "${steps[@]}"; do
    [ -n "${commands[$step]:-}" ] || die "no step '$step'; there are: ${!commands[*]}"
done
[ "$(id -u)" -eq 0 ] || die "making a root file system needs root: sudo make test-bare"
for tool in debootstrap git unshare pivot_root; do
    command -v "$tool" >/dev/null || die "$tool is missing; on Debian: apt-get install" \
        "debootstrap git util-linux"
done

# Commands must not leave the worktree they are told, whatever called this script.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE

scratch=$(mktemp -d /var/tmp/hsm-kms-bare.XXXXXX)
job=
cleanup() {
    [ -z "$job" ] || kill -KILL -- "-$job" 2>/dev/null || true
    rm -rf --one-file-system "$scratch" || {
        sleep 1 # what was killed may have made a file meanwhile
        rm -rf --one-file-system "$scratch"
    }
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In a root, as this user of it; see enter.sh for what it finds there.
enter() {
    unshare --mount --propagation private --ipc --pid --fork --kill-child \
        "$here/enter.sh" "$@"
}

# What README.md says a bare Debian lacks, and a user who can call sudo.
make_base() {
    local root=$1
    cp -a --reflink=auto "$scratch/minimal" "$root"
    enter "$root" root / 'apt-get -qq update &&
        apt-get -qq install --no-install-recommends git make python3-venv >/dev/null'
}

make_user() {
    enter "$1" root / 'apt-get -qq install --no-install-recommends sudo >/dev/null &&
        useradd --create-home --shell /bin/bash newcomer'
    # sudo would drop the proxies from the environment.
    printf '%s\n' 'Defaults env_keep += "*_proxy *_PROXY"' \
        'newcomer ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/newcomer"
}

run_step() {
    local step=$1 root=$scratch/$1 user=root home=/root
    # Tests run commands as other users, who cannot enter /root.
    [[ $step != test* ]] || home=/srv
    if [[ $step = ci* || $step = readme ]]; then
        cp -a --reflink=auto "$scratch/minimal" "$root"
    else
        [ -d "$scratch/base" ] || make_base "$scratch/base"
        cp -a --reflink=auto "$scratch/base" "$root"
    fi
    if [[ $step = user-* ]]; then
        user=newcomer home=/home/newcomer
        make_user "$root"
    fi
    git clone --quiet --no-local "$project" "$root$home/hsm-kms"
    [ "$user" = root ] || chown -R --reference "$root$home" "$root$home/hsm-kms"
    enter "$root" "$user" "$home/hsm-kms" "${commands[$step]}"
}

echo "== making the bare root"
"$here/minimal.sh" "$scratch/minimal" "${BARE_SUITE:-}"
failed=()
for step in "${steps[@]}"; do
    printf '\n== %s: %s\n' "$step" "${commands[$step]}"
    SECONDS=0
    # A process group of its own, so that a signal to this script can end all of it.
    set -m
    run_step "$step" </dev/null &
    job=$!
    set +m
    verdict=passed
    wait "$job" || {
        verdict=FAILED
        failed+=("$step")
    }
    job=
    echo "== $step: $verdict after $SECONDS s"
    rm -rf --one-file-system "${scratch:?}/$step"
done
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
