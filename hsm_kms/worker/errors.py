"""Turn what fails in a worker into data: PKCS#11 function, CK_RV, cause."""

from __future__ import annotations

import re

import pkcs11.exceptions

from hsm_kms.ipc import ckr
from hsm_kms.ipc.messages import Failure


class WorkerError(Exception):
    """Raised when a request failed; the worker reports it in place of a result.

    Args:
        cause: A `ckr.Fault` or a `ckr.Cause`.
        detail: A message without secrets.
        function: The PKCS#11 function that failed; "" if none was called.
        rv: Its CK_RV; None if it returned none.
    """

    def __init__(
        self, cause: str, detail: str = "", *, function: str = "", rv: int | None = None
    ) -> None:
        super().__init__(detail)
        self.cause = cause
        self.detail = detail
        self.function = function
        self.rv = rv

    def as_message(self) -> Failure:
        """Return the failure as a reply to the server."""
        return Failure(
            cause=str(self.cause),
            detail=self.detail,
            function=self.function,
            rv=self.rv,
        )


def from_rv(function: str, rv: int) -> WorkerError:
    """Return the error for a CK_RV other than CKR_OK."""
    detail = f"{function} returned {ckr.name(rv)}"
    return WorkerError(ckr.fault(rv), detail, function=function, rv=rv)


def from_pkcs11(function: str, error: pkcs11.exceptions.PKCS11Error) -> WorkerError:
    """Return the error for an exception of python-pkcs11, which drops the CK_RV.

    Args:
        function: The PKCS#11 function that most likely failed.
        error: A subclass named after the CKR, or the base class with the number
            in its text.
    """
    rv = _BY_CLASS.get(type(error).__name__)
    if rv is None:
        rv = _rv_in_text(str(error))
    if rv is None:
        return WorkerError(ckr.Fault.DEVICE, f"{function} failed", function=function)
    return from_rv(function, rv)


def _rv_in_text(text: str) -> int | None:
    number = re.search(r"0x([0-9a-fA-F]+)", text)
    if number:
        return int(number[1], 16)
    for words, rv in _GENERIC_TEXTS.items():
        if words in text:
            return rv
    return None


_GENERIC_TEXTS = {
    "Buffer was too small": 0x150,
    "(not initialized)": 0x190,
    "(already initialized)": 0x191,
}

# Spellings that differ from the CKR name.
_ODD_NAMES = {
    "AnotherUserAlreadyLoggedIn": 0x104,
    "FunctionCancelled": 0x050,
    "TokenNotRecognised": 0x0E1,
    "SessionReadWriteSOExists": 0x0B8,
    "UserTypeInvalid": 0x103,
}


def _class_to_rv() -> dict[str, int]:
    squeezed = {name[4:].replace("_", ""): rv for name, rv in ckr.BY_NAME.items()}
    named = {
        name: squeezed[name.upper()]
        for name in vars(pkcs11.exceptions)
        if name.upper() in squeezed
    }
    return named | _ODD_NAMES


_BY_CLASS = _class_to_rv()
