"""Heal what only a session can heal, and find out what a failed decryption means.

1. A failure that has a remedy in `REMEDIES` is healed, and the request is tried again,
   once. Any other failure is reported as it is; `token.errors` says what the server
   does.
2. A ciphertext comes from etcd, and may have been made to cause any failure. Whatever
   the token answers to a decryption, it is no fault of the token while the same session
   decrypts a known-good record.
3. A ciphertext is found bad only if it failed twice, for a failure may pass; three
   times if the failure speaks of the session, for several may come at once. The last
   failure must come after the known-good record was decrypted.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.ipc.messages import (
    CheckKey,
    Decrypt,
    Encrypt,
    FindKeys,
    GenerateRandom,
    Probe,
    RunCanary,
)
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from hsm_kms.ipc.messages import Reply, Request


class Remedy(StrEnum):
    """Name what a session does before it tries a request again."""

    REOPEN = "reopen"  # C_OpenSession, and the key handles are found again
    FIND = "find"  # the key handles are found again, if the user is logged in


REMEDIES: Final[dict[str, Remedy]] = {
    Fault.AMBIGUOUS: Remedy.REOPEN,
    Fault.SESSION: Remedy.REOPEN,
    Fault.LOGIN: Remedy.FIND,
    Cause.NO_KEY: Remedy.FIND,
}

JUDGES: Final = frozenset({"C_DecryptInit", "C_Decrypt", "C_VerifyInit", "C_Verify"})
"""The functions that see a ciphertext, its IV or its tag."""

_OF_SESSION: Final = frozenset({Fault.SESSION, Fault.LOGIN})

# Not Login, which can use up a PIN try, nor changes of keys, which may have succeeded.
_REPEATABLE = (
    Encrypt,
    Decrypt,
    RunCanary,
    CheckKey,
    Probe,
    FindKeys,
    GenerateRandom,
)


class Session(Protocol):
    """Run requests on the token; `session.TokenSession` does."""

    def run(self, request: Request) -> Reply:
        """Run a request once."""
        ...

    def known_good(self, request: Decrypt) -> Decrypt | None:
        """Return a record under the same key that did decrypt, None if there is none.

        Args:
            request: Names the key.
        """
        ...

    def reopen(self) -> None:
        """Replace the PKCS#11 session by a new one."""
        ...

    def find_again(self, error: WorkerError) -> None:
        """Drop all key handles.

        Raises:
            WorkerError: The user is no longer logged in.
        """
        ...

    def logged_in(self) -> bool:
        """Return True if the session is logged in, or needs no login."""
        ...


def answer(session: Session, request: Request) -> Reply:
    """Run a request, and once more if its failure can be healed.

    Args:
        session: Where to run it.
        request: The request.

    Raises:
        WorkerError: It failed; the cause says at whose fault.
    """
    try:
        return session.run(request)
    except WorkerError as error:
        if isinstance(request, Decrypt) and error.function in JUDGES:
            return _settle(session, request, error)
        if not isinstance(request, _REPEATABLE) or error.cause not in REMEDIES:
            raise
        _heal(session, error)
    try:
        return session.run(request)
    except WorkerError as error:
        raise _of_second_try(session, error) from None


def _settle(session: Session, request: Decrypt, error: WorkerError) -> Reply:
    """Try a failed decryption again, and find out what is at fault if it fails again.

    Raises:
        WorkerError: See `_verdict`.
    """
    if error.cause == Fault.REQUEST:  # the token itself blames the ciphertext
        raise error
    works = _works(session, request)
    if works is None and error.cause not in _OF_SESSION:
        raise _because(Cause.UNSETTLED, error)
    if not works:
        _heal(session, error)
    outcome = _repeat(session, request, 2 if error.cause in _OF_SESSION else 1)
    if isinstance(outcome, WorkerError) and not (works and outcome.rv == error.rv):
        # It may be another failure by now, or it has passed: only what fails after a
        # known-good record was decrypted is bad.
        works = _works(session, request)
        if works:
            outcome = _repeat(session, request, 1)
    if isinstance(outcome, WorkerError):
        raise _verdict(session, outcome, works=works)
    return outcome


def _repeat(session: Session, request: Decrypt, times: int) -> Reply | WorkerError:
    """Return the first reply, or the last failure if all fail."""
    outcome = WorkerError(Cause.INTERNAL, "not tried")
    for _ in range(times):
        try:
            return session.run(request)
        except WorkerError as failure:
            outcome = failure
    return outcome


def _verdict(
    session: Session, error: WorkerError, *, works: bool | None
) -> WorkerError:
    """Return the error of a decryption that failed each time.

    Its cause is `Fault.REQUEST` or `Cause.NOT_AUTHENTIC` if the ciphertext is at fault,
    `Cause.UNSETTLED` if that is not known, and any other if the token is at fault.

    Args:
        session: The session.
        error: The last failure.
        works: True if the session decrypts the known-good record; None without one.
    """
    if error.cause == Fault.REQUEST or error.function not in JUDGES:
        return _of_second_try(session, error)
    if works is None:
        return _because(Cause.UNSETTLED, error)
    if works:
        return _because(Cause.NOT_AUTHENTIC, error)
    if error.cause in _OF_SESSION:
        return _of_second_try(session, error)
    return _because(Cause.SESSION_FAILS, error)


def _works(session: Session, request: Decrypt) -> bool | None:
    """Return True if the session decrypts the known-good record, None without one."""
    record = session.known_good(request)
    if record is None:
        return None
    try:
        session.run(record)
    except WorkerError:
        return False
    return True


def _heal(session: Session, error: WorkerError) -> None:
    if REMEDIES.get(error.cause) is Remedy.FIND:
        session.find_again(error)
    else:
        session.reopen()


def _of_second_try(session: Session, error: WorkerError) -> WorkerError:
    if error.cause == Fault.LOGIN and session.logged_in():
        error.cause = Fault.SESSION  # another session may still work
    return error


def _because(cause: Cause, error: WorkerError) -> WorkerError:
    return WorkerError(cause, error.detail, function=error.function, rv=error.rv)
