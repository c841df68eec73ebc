#!/bin/sh
# Build the wheel and the sdist into dist/: see `make dist`.
#
# The files depend on nothing but their sources: the times in them are SOURCE_DATE_EPOCH,
# or the time of the last commit, and no mode comes from the umask. PYTHON names a Python
# with hatchling, that of .venv unless it is set.
set -eu
cd "${0%/*}/.."

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    # In an unpacked sdist there is no commit; hatchling has a time of its own for that.
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || true)
fi
[ -z "$SOURCE_DATE_EPOCH" ] || export SOURCE_DATE_EPOCH
rm -f dist/hsm_kms-*.whl dist/hsm_kms-*.tar.gz
"${PYTHON:-.venv/bin/python}" -m hatchling build
