"""Read the PIN from its file, and refuse bytes that no one meant to be part of it.

A PIN with a stray byte costs one of the few tries that a token allows. Nothing is
guessed or trimmed beyond one final newline: what looks like an accident of an editor,
of Windows or of a template is refused before C_Login.
"""

from __future__ import annotations

import codecs
import os
import re
from typing import TYPE_CHECKING, Final

from hsm_kms.ipc.ckr import Cause
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from hsm_kms.ipc.messages import Login

_MAX_BYTES: Final = 1024
# Each pattern is searched in the PIN after one final newline was removed; the first
# that matches is reported. No reason may quote the file.
_BOMS: Final = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ODD: Final = {
    b"\\A(" + b"|".join(map(re.escape, _BOMS)) + b")": "begins with a byte-order mark",
    rb"\r\Z": "ends with a carriage return",
    rb"[\r\n]\Z": "ends with more than one newline",
    rb"\A[\r\n]": "begins with an empty line",
    rb"[\r\n]": "has more than one line",
    rb"[ \t]\Z": "ends with a blank",
    rb"\A[ \t]": "begins with a blank",
    rb"[\x00-\x1f\x7f]": "contains a control character",
    rb"(?i)\A(user[-_ ]?)?pin(-value)?[ \t]*[=:]": "has a name before the PIN",
    rb"\A(['\"]).*\1\Z": "has quotation marks around the PIN",
}


def read_pin(request: Login) -> bytearray:
    """Return the PIN without one final newline; the caller wipes it.

    Args:
        request: Names the file, and its identity unless the PIN was typed.

    Raises:
        WorkerError: The file cannot be read, is not the file that the request
            describes, before and after reading, or holds something besides a PIN.
    """
    pin = _read(request)
    if pin.endswith(b"\n"):
        del pin[-1:]
    file = "the typed PIN" if request.identity is None else request.pin_file
    reason = _reason_to_refuse(pin)
    if reason:
        pin[:] = bytes(len(pin))
        raise WorkerError(Cause.PIN_CONTENT, f"{file} {reason}")
    return pin


def _reason_to_refuse(pin: bytearray) -> str | None:
    if not pin:
        return "holds no PIN"
    if len(pin) >= _MAX_BYTES:
        return "is too long for a PIN"
    for pattern, reason in _ODD.items():
        if re.search(pattern, pin):
            return reason
    return None


def _read(request: Login) -> bytearray:
    try:
        # Not Path.open: pathlib is a tenth of what a worker imports.
        with open(request.pin_file, "rb", buffering=0) as file:  # noqa: PTH123
            before = _identity(file.fileno())
            pin = bytearray(_MAX_BYTES + 1)
            del pin[file.readinto(pin) or 0 :]
            after = _identity(file.fileno())
    except OSError as error:
        raise WorkerError(
            Cause.PIN_FILE, f"cannot read {request.pin_file}: {error.strerror}"
        ) from None
    if request.identity is not None and not before == after == request.identity:
        raise WorkerError(Cause.PIN_CHANGED, "the PIN file changed while it was read")
    return pin


def _identity(descriptor: int) -> tuple[int, int, int, int, int]:
    stat = os.fstat(descriptor)
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
