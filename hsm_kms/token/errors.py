"""Define what each error of the token means: one row per cause.

1. A worker names a cause: the class that `ipc.ckr` gives to a CK_RV, or a `Cause`.
   It has then tried all that its own session can heal, see `worker.session`.
2. Here each cause gets its effect on the caller, the session and the breaker;
   `token.pool` applies the row and decides nothing itself.
3. A cause that this version does not know means what `Fault.DEVICE` means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    OTHER_SCOPE,
    CiphertextError,
    HsmKmsError,
    KeyAmbiguousError,
    KeyNotFoundError,
    KeyReplacedError,
    KeyUnsuitableError,
    MechanismError,
    PinRejectedError,
    PinUnavailableError,
    RequestError,
    SessionLostError,
    TokenAbsentError,
    TokenError,
    UndecidedError,
    WorkerLostError,
)
from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.ipc.messages import Encrypt

if TYPE_CHECKING:
    from hsm_kms.ipc.messages import Failure, Request
    from hsm_kms.ipc.values import Problem


class SessionEffect(StrEnum):
    """Name what happens to the session that reported the failure."""

    KEPT = "kept"  # it is lent again
    LENT_LAST = "lent last"  # it is lent again, after every other idle session
    WITHDRAWN = "withdrawn"  # it is lent again once C_OpenSession succeeds
    RETIRED = "retired"  # its worker is logged out and is replaced


class BreakerEffect(StrEnum):
    """Name what the breaker learns from the failure."""

    COUNTS = "counts"  # the token is at fault: one more failure in a row
    RESETS = "resets"  # the token works: it judged what it was given
    IGNORES = "ignores"  # nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Say what one cause means.

    Args:
        error: Class of the error that the caller gets.
        hint: How to fix the cause; None if nothing can be done.
        session: See `SessionEffect`.
        breaker: See `BreakerEffect`.
        reported: Report the error as a fault: the token should be looked at.
    """

    error: type[HsmKmsError]
    hint: str | None = None
    session: SessionEffect = SessionEffect.KEPT
    breaker: BreakerEffect = BreakerEffect.IGNORES
    reported: bool = True

    @property
    def retried(self) -> bool:
        """Return True if the request runs once more, on another session."""
        return issubclass(self.error, LOST)

    def error_from(self, failure: Problem) -> HsmKmsError:
        """Return the error for a failure that has this row's cause."""
        hint = _more_precise(failure) or self.hint
        return self.error(
            failure.detail, hint=hint, function=failure.function, rv=failure.rv
        )

    def final_from(self, failure: Failure) -> HsmKmsError:
        """Return the error for a failure after which nothing is tried again."""
        final = replace(self, error=TokenError) if self.retried else self
        return final.error_from(failure)


LOST: Final = (SessionLostError, WorkerLostError)
"""Errors that say nothing about the request: the pool runs it once more."""

_DEVICE: Final = "see whether the HSM and its client service are up"
_FORBIDDEN: Final = (
    "permit it on the HSM, or configure another way: docs/compatibility.md lists what "
    "tokens need"
)
_CAPACITY: Final = "lower token.workers or token.sessions_per_worker"
_PIN: Final = "put the right PIN into the PIN file; the rejected one is not tried again"
_PIN_FILE: Final = "make the PIN file readable for this process"
_PIN_CONTENT: Final = (
    "give only the PIN; in a PIN file, at most one newline may follow the PIN"
)
_PIN_LOW: Final = (
    "make sure that the PIN file is right, then run `hsm-kms token retry-pin`"
)
_MODULE: Final = "check token.module and the libraries it needs"
_SELECT: Final = (
    "list the tokens with `hsm-kms token list`, then correct the token selector"
)
ACCESS: Final = (
    "see whether its configuration (token.env) and the files of its tokens are intact "
    "and readable for this user, whether the user is in its group (pkcs11 for "
    "opencryptoki), and whether the HSM and its client service are up"
)
_WRITABLE: Final = (
    "see whether the token can be changed: its files by this user, its policy by this "
    "role, and whether it has room"
)
_OTHER_KEY: Final = (
    "give the key its CKA_LABEL and CKA_ID back, or name another in keys.current"
)
_UNNAMED: Final = (
    "give it a CKA_LABEL in UTF-8 and a CKA_ID of its own with the tools of the HSM"
)
_NOT_PROVEN: Final = "do not use this token until its vendor has explained"

_REFUSED: Final = Row(
    error=CiphertextError,
    hint=OTHER_SCOPE,
    breaker=BreakerEffect.RESETS,
    reported=False,
)

TABLE: Final[dict[str, Row]] = {
    Fault.REQUEST: _REFUSED,
    Fault.AMBIGUOUS: Row(error=TokenError, hint=_DEVICE, breaker=BreakerEffect.COUNTS),
    Fault.SESSION: Row(error=SessionLostError, session=SessionEffect.LENT_LAST),
    Fault.LOGIN: Row(error=WorkerLostError, session=SessionEffect.RETIRED),
    Fault.DEVICE: Row(error=TokenError, hint=_DEVICE, breaker=BreakerEffect.COUNTS),
    Fault.CAPACITY: Row(error=TokenError, hint=_CAPACITY),
    Fault.PIN: Row(error=PinRejectedError, hint=_PIN),
    Fault.OPERATOR: Row(error=MechanismError, hint=_FORBIDDEN),
    Cause.MODULE: Row(error=TokenAbsentError, hint=_MODULE),
    Cause.NO_TOKEN: Row(error=TokenAbsentError, hint=_SELECT),
    Cause.BLANK: Row(error=TokenAbsentError, hint=ACCESS),
    Cause.SEVERAL_TOKENS: Row(error=TokenAbsentError, hint="select by token_serial"),
    Cause.NO_KEY: Row(
        error=KeyNotFoundError, hint="make one with `hsm-kms keys generate`"
    ),
    Cause.SEVERAL_KEYS: Row(
        error=KeyAmbiguousError, hint="give each key its own CKA_ID"
    ),
    Cause.OTHER_KEY: Row(
        error=KeyReplacedError,
        hint=_OTHER_KEY,
        breaker=BreakerEffect.RESETS,
    ),
    Cause.UNNAMED: Row(error=KeyUnsuitableError, hint=_UNNAMED),
    Cause.PIN_FILE: Row(error=PinUnavailableError, hint=_PIN_FILE),
    Cause.PIN_CONTENT: Row(error=PinUnavailableError, hint=_PIN_CONTENT),
    Cause.PIN_CHANGED: Row(error=PinUnavailableError),
    Cause.PIN_COUNTED: Row(error=PinRejectedError, hint=_PIN),
    Cause.PIN_LOW: Row(error=PinUnavailableError, hint=_PIN_LOW),
    Cause.NOT_AUTHENTIC: _REFUSED,
    # A ciphertext comes from etcd: it must not make anybody doubt the token.
    Cause.UNSETTLED: Row(error=UndecidedError, hint=_DEVICE, reported=False),
    Cause.SESSION_FAILS: Row(
        error=SessionLostError,
        hint=_DEVICE,
        session=SessionEffect.LENT_LAST,
        breaker=BreakerEffect.COUNTS,
    ),
    Cause.NOT_PROVEN: Row(
        error=TokenError, hint=_NOT_PROVEN, breaker=BreakerEffect.COUNTS
    ),
    Cause.INTERNAL: Row(
        error=TokenError,
        hint="this is a bug; please report it",
        breaker=BreakerEffect.COUNTS,
    ),
}

BY_REQUEST: Final[dict[tuple[type[Request], str], Row]] = {
    # There is no ciphertext yet that could be at fault: the DEK is.
    (Encrypt, Fault.REQUEST): Row(error=RequestError, reported=False),
}
"""Rows that differ from `TABLE` for one kind of request."""

NOT_OPENED: Final = Row(error=SessionLostError, session=SessionEffect.WITHDRAWN)
"""The row of a C_OpenSession that the token has no room for, while there are others."""


# The functions by which a module starts and shows its tokens.
_FIRST_FUNCTIONS: Final = frozenset(
    {"C_GetFunctionList", "C_Initialize", "C_GetInfo", "C_GetSlotList"}
)
# The functions that change the token.
_WRITING_FUNCTIONS: Final = frozenset(
    {"C_GenerateKey", "C_SetAttributeValue", "C_CopyObject", "C_DestroyObject"}
)
_HINTS: Final = {
    "CKR_CANT_LOCK": "use a module that several threads of a process can use",
    "CKR_LIBRARY_LOAD_FAILED": _MODULE,
    "CKR_SESSION_READ_ONLY": "set token.read_write: true",
    "CKR_TOKEN_WRITE_PROTECTED": _WRITABLE,
    "CKR_USER_PIN_NOT_INITIALIZED": "set the user PIN with the HSM's own tools",
    "CKR_USER_TYPE_INVALID": "correct token.login",
}
"""Cures of single return values, by name."""


def row_for(failure: Failure, request: Request, *, others: bool) -> Row:
    """Return what a failure means for the request that it answers.

    Args:
        failure: The worker's answer.
        request: What was asked.
        others: The pool has other sessions.
    """
    if failure.function == "C_OpenSession":
        if failure.cause != Fault.CAPACITY:
            return TABLE[Cause.SESSION_FAILS]
        if others:
            return NOT_OPENED
    row = _row_of(failure.cause)
    return BY_REQUEST.get((type(request), failure.cause), row)


def error_from(failure: Problem) -> HsmKmsError:
    """Return the error for a failure, whatever the request was."""
    return _row_of(failure.cause).error_from(failure)


def may_mean_wrong_pin(error: HsmKmsError) -> bool:
    """Return True if some tokens report a wrong PIN by this error of C_Login."""
    if error.function != "C_Login":
        return False
    return error.rv not in ckr.known() or ckr.fault(error.rv) is Fault.AMBIGUOUS


def _more_precise(failure: Problem) -> str | None:
    """Return the hint for the function or the CK_RV of a failure, if there is one."""
    if failure.function in _FIRST_FUNCTIONS:
        return ACCESS
    hint = None if failure.rv is None else _HINTS.get(ckr.name(failure.rv))
    if hint is None and failure.function in _WRITING_FUNCTIONS:
        return _WRITABLE
    return hint


def _row_of(cause: str) -> Row:
    return TABLE.get(cause, TABLE[Fault.DEVICE])
