#!/bin/sh
# Run `make run` until its server answers on its socket; then stop the server.
set -eu

setsid make run &
server=$!
trap 'kill -- "-$server" 2>/dev/null || true' EXIT

# The first run installs Python packages and SoftHSM2.
tries=0
until status=$(.venv/bin/hsm-kms status --socket .dev/kms.sock 2>/dev/null); do
    tries=$((tries + 1))
    if [ "$tries" -gt 1800 ] || ! kill -0 "$server" 2>/dev/null; then
        echo 'make run does not serve' >&2
        exit 1
    fi
    sleep 1
done
printf '%s\n' "$status"

kill -- "-$server"
wait "$server" || true # make reports the signal
if [ -e .dev/kms.sock ]; then
    echo 'the server left its socket behind' >&2
    exit 1
fi
