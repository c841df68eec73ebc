"""Translate errors into what Status says in `healthz`: one fixed message per class.

The API server shows the message to everyone who may read its /readyz, so it has no
names and no paths; those are in the log and in `hsm-kms check`.
"""

from __future__ import annotations

from typing import Final

from hsm_kms import errors

_CHECK: Final = "run hsm-kms check on the node"

HEALTH: Final[dict[type[errors.HsmKmsError], str]] = {
    errors.TokenError: (
        f"the token failed; check whether the HSM is running, and {_CHECK}"
    ),
    errors.TokenAbsentError: (
        "the PKCS#11 module or the token was not found; "
        f"check whether the HSM and its client are running, and {_CHECK}"
    ),
    errors.WorkerLostError: f"the token cannot be reached; {_CHECK}",
    errors.WorkerUnkillableError: (
        "token workers hang in the kernel and cannot be killed; "
        "repair the driver that the PKCS#11 module uses, or reboot the node"
    ),
    errors.SessionLostError: f"the token keeps losing its sessions; {_CHECK}",
    errors.TokenTimeoutError: (
        "the token does not answer in time; "
        f"check whether the HSM is running, and {_CHECK}"
    ),
    errors.PinRejectedError: (
        "the token rejected the PIN; write the correct PIN to the PIN file"
    ),
    errors.PinUnavailableError: f"there is no PIN, or it cannot be tried yet; {_CHECK}",
    errors.PinSettlingError: "the PIN file was written just now; wait two seconds",
    errors.KeyNotFoundError: (
        "no key with the configured label is on the token; "
        "create one with hsm-kms keys generate"
    ),
    errors.KeyAmbiguousError: (
        "several keys have the configured label; set keys.current to one of them"
    ),
    errors.KeyNotActiveError: (
        "every key on the token becomes active later; check the clock of this node"
    ),
    errors.KeyReusedError: (
        "the current key_id was used before; set keys.suffix to a value never used"
    ),
    errors.KeyUnsuitableError: f"the current key violates the key policy; {_CHECK}",
    errors.KeyLostError: (
        "the last current key is not on the token; "
        "restore it, or set keys.current to another key"
    ),
    errors.KeyReplacedError: (
        "another key has the names of the last current key; "
        f"restore it, or set keys.current to another key; {_CHECK}"
    ),
    errors.NonceBudgetError: (
        "the current key has reached its limit of encryptions; run hsm-kms keys rotate"
    ),
    errors.MechanismError: (
        f"the token does not support the required encryption mechanism; {_CHECK}"
    ),
    errors.PoolTimeoutError: "every token session is busy",
    errors.AuditError: (
        "audit records cannot be written, and audit.on_error is refuse; "
        f"free the disk of the audit file, or {_CHECK}"
    ),
    errors.PoolClosedError: "the server is shutting down",
}

_ANY_OTHER: Final = f"the server cannot use the token; {_CHECK}"


def health(error: errors.HsmKmsError) -> str:
    """Return the message for an error: cause and cure, without a name or a path."""
    return HEALTH.get(type(error), _ANY_OTHER)
