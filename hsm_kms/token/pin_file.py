"""Check that the PIN file can be used, without reading it.

A PIN file that is absent, empty, younger than two seconds, or readable by others is not
used until that has changed. Only a worker opens the file.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hsm_kms.clock import now
from hsm_kms.denials import hint_for
from hsm_kms.errors import PinSettlingError, PinUnavailableError
from hsm_kms.state_dir.records import PinIdentity

if TYPE_CHECKING:
    from pathlib import Path

STABLE_SECONDS: Final = 2.0
_TOO_OPEN: Final = stat.S_IRWXO | stat.S_IWGRP
_WRITE: Final = "write the PIN to the file; a running server then uses it by itself"
_CREATE: Final = (
    "create it with mode 0400 and write the PIN to it, or correct token.pin_file"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PinSource:
    """Say where the PIN comes from.

    Args:
        path: The file, as the worker opens it.
        typed: The operator typed the PIN for one command: there is no file to remember.
        user_type: CK_USER_TYPE to log in as.
    """

    path: Path
    typed: bool = False
    user_type: int


def identify(path: Path) -> PinIdentity:
    """Return the identity of the PIN file as it is now.

    Raises:
        PinUnavailableError: The file is absent, empty, no regular file, readable by
            others, or not root's or this process's own.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise PinUnavailableError(
            f"the PIN file {path} cannot be read: {error.strerror}",
            hint=_CREATE
            if error.errno == errno.ENOENT
            else hint_for(
                error,
                path,
                f"let user {os.geteuid()} read it, and nobody else but root",
            ),
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise PinUnavailableError(f"the PIN file {path} is not a regular file")
    if found.st_size == 0:
        raise PinUnavailableError(f"the PIN file {path} is empty", hint=_WRITE)
    if found.st_mode & _TOO_OPEN:
        raise PinUnavailableError(
            f"the PIN file {path} is open to others (mode {found.st_mode & 0o777:04o})",
            hint=f"run chmod 0600 {path}; others may have read the PIN",
        )
    if found.st_uid not in {0, os.geteuid()}:
        raise PinUnavailableError(
            f"the PIN file {path} belongs to uid {found.st_uid}",
            hint="the file must belong to root or to the user hsm-kms runs as",
        )
    return PinIdentity.from_stat(found)


def require_stable(identity: PinIdentity) -> None:
    """Refuse a file that a program may still be writing.

    Raises:
        PinSettlingError: The file changed within the last two seconds.
    """
    age = now() - identity.ctime_ns / 1e9
    if 0 <= age < STABLE_SECONDS:
        raise PinSettlingError("waiting until the PIN file has not changed for 2 s")
