"""Is the PIN file fit to be used?

A PIN file that is absent, empty, younger than two seconds or open to others is waited
for, not used.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import PinSettlingError, PinUnavailableError
from hsm_kms.state_dir.records import PinIdentity

if TYPE_CHECKING:
    from pathlib import Path

STABLE_SECONDS: Final = 2.0
_TOO_OPEN: Final = stat.S_IRWXO | stat.S_IWGRP


@dataclass(frozen=True, slots=True, kw_only=True)
class PinSource:
    """Where the PIN comes from.

    Args:
        path: The file, as the worker opens it.
        typed: It was typed in for this one command: no file to remember.
        user_type: CK_USER_TYPE to log in as.
    """

    path: Path
    typed: bool = False
    user_type: int


def identify(path: Path) -> PinIdentity:
    """What the PIN file is now.

    Raises:
        PinUnavailableError: Absent, empty, too new, or open to others.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise PinUnavailableError(
            f"waiting for the PIN file {path}: {error.strerror}"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise PinUnavailableError(f"the PIN file {path} is not a regular file")
    if found.st_size == 0:
        raise PinUnavailableError(f"waiting for the PIN file {path}: it is empty")
    if found.st_mode & _TOO_OPEN:
        raise PinUnavailableError(
            f"the PIN file {path} is open to others (mode {found.st_mode & 0o777:04o})",
            hint=f"chmod 0600 {path}, and consider the PIN known",
        )
    if found.st_uid not in {0, os.geteuid()}:
        raise PinUnavailableError(
            f"the PIN file {path} belongs to uid {found.st_uid}",
            hint="it must belong to root or to the user hsm-kms runs as",
        )
    return PinIdentity.from_stat(found)


def require_stable(identity: PinIdentity) -> None:
    """Wait for a file that somebody may still be writing.

    Raises:
        PinSettlingError: It changed within the last two seconds.
    """
    age = datetime.now(UTC).timestamp() - identity.ctime_ns / 1e9
    if 0 <= age < STABLE_SECONDS:
        raise PinSettlingError("waiting until the PIN file has been still for 2 s")
