"""From what a worker reports to the error that its caller handles: one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    CiphertextError,
    HsmKmsError,
    KeyAmbiguousError,
    KeyNotFoundError,
    MechanismError,
    PinRejectedError,
    PinUnavailableError,
    SessionLostError,
    TokenAbsentError,
    TokenError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from hsm_kms.ipc.messages import Failure

_CHECK: Final = "run `hsm-kms check` for the details"
_PIN_HINT: Final = (
    "put the right PIN into the PIN file; the rejected one is not tried again"
)
_LOW_HINT: Final = (
    "make sure that the PIN file is right, then run `hsm-kms token retry-pin`"
)

# cause → (error class, what to do about it)
TABLE: Final[dict[str, tuple[type[HsmKmsError], str | None]]] = {
    "request": (CiphertextError, None),
    "not-authentic": (CiphertextError, None),
    "ambiguous": (TokenError, _CHECK),
    "session": (SessionLostError, None),
    "login": (WorkerLostError, None),
    "device": (TokenError, "see whether the HSM and its client service are up"),
    "capacity": (TokenError, "lower token.workers or token.sessions_per_worker"),
    "pin": (PinRejectedError, _PIN_HINT),
    "operator": (MechanismError, _CHECK),
    "module": (TokenAbsentError, "check token.module and the libraries it needs"),
    "no-token": (
        TokenAbsentError,
        "check the token selector with `hsm-kms token list --module FILE`",
    ),
    "several-tokens": (TokenAbsentError, "select by token_serial"),
    "no-key": (KeyNotFoundError, "make one with `hsm-kms keys generate`"),
    "several-keys": (KeyAmbiguousError, "give each key its own CKA_ID"),
    "pin-file": (PinUnavailableError, "make the PIN file readable for this process"),
    "pin-changed": (PinUnavailableError, None),
    "pin-low": (PinUnavailableError, _LOW_HINT),
    "not-proven": (TokenError, "do not use this token until its vendor has explained"),
    "internal": (TokenError, "this is a bug; please report it"),
}


def error_from(failure: Failure) -> HsmKmsError:
    """The error for a failure; a cause this version does not know is the device's."""
    kind, hint = TABLE.get(failure.cause, TABLE["device"])
    return kind(failure.detail, function=failure.function, rv=failure.rv, hint=hint)
