#!/bin/sh
# Entry point of the target `dev`: make a SoftHSM2 token with a key in /var/lib/hsm-kms
# before the first `serve`, then run hsm-kms.
set -eu
# A shell that is process 1 gets no signal that it does not trap.
trap 'exit 143' INT TERM
if [ "${1:-}" = serve ]; then
    HSM_KMS=/opt/hsm-kms/bin/hsm-kms /usr/share/hsm-kms/softhsm/setup.sh /var/lib/hsm-kms
fi
exec env --block-signal=HUP,INT,TERM hsm-kms "$@"
