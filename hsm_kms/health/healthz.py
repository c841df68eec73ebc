"""What Status says in `healthz`: one fixed sentence per error class.

The API server shows it to whoever may read its /readyz; causes with names and paths
are in the log and in `hsm-kms check`.
"""

from __future__ import annotations

from typing import Final

from hsm_kms import errors

_SEE: Final = "see hsm-kms check on the node"

HEALTH: Final[dict[type[errors.HsmKmsError], str]] = {
    errors.TokenError: f"the token failed; see whether the HSM is up, and {_SEE}",
    errors.TokenAbsentError: (
        "the PKCS#11 module or the token is not there; "
        f"see whether the HSM and its client are up, and {_SEE}"
    ),
    errors.WorkerLostError: f"the token is not reached; {_SEE}",
    errors.SessionLostError: f"the token loses its sessions; {_SEE}",
    errors.TokenTimeoutError: (
        f"the token does not answer in time; see whether the HSM is up, and {_SEE}"
    ),
    errors.PinRejectedError: (
        "the token rejected the PIN; put the right one into the PIN file"
    ),
    errors.PinUnavailableError: f"the PIN is not there or cannot be tried yet; {_SEE}",
    errors.PinSettlingError: "the PIN file was written just now; wait two seconds",
    errors.KeyNotFoundError: (
        "no key with the configured label is on the token; "
        "make one with hsm-kms keys generate"
    ),
    errors.KeyAmbiguousError: (
        "several keys have the configured label; name one in keys.current"
    ),
    errors.KeyNotActiveError: (
        "every key on the token becomes active later; see whether the clock is right"
    ),
    errors.KeyReusedError: (
        "the current key_id was used before; set keys.suffix to one never used"
    ),
    errors.KeyUnsuitableError: f"the current key breaks the key policy; {_SEE}",
    errors.KeyLostError: (
        "the key last current here is not on the token; "
        "restore it, or name another in keys.current"
    ),
    errors.NonceBudgetError: (
        "the current key has wrapped as often as is safe; "
        "make another with hsm-kms keys rotate"
    ),
    errors.MechanismError: f"the token refuses a mechanism that is needed; {_SEE}",
    errors.PoolTimeoutError: "every token session is busy",
    errors.PoolClosedError: "the server is shutting down",
}

_ANY_OTHER: Final = f"the server cannot use the token; {_SEE}"


def health(error: errors.HsmKmsError) -> str:
    """The sentence for an error: cause and cure, without a name or a path."""
    return HEALTH.get(type(error), _ANY_OTHER)
