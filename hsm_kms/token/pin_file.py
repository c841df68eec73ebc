"""Check that the PIN file can be used, without reading it.

A PIN file that is absent, empty, younger than two seconds, or readable by others is not
used until that has changed. Only a worker opens the file. A credential of systemd is
complete when it appears, so its age does not matter.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hsm_kms.clock import now
from hsm_kms.denials import hint_for
from hsm_kms.errors import PinSettlingError, PinUnavailableError
from hsm_kms.state_dir.records import PinIdentity

STABLE_SECONDS: Final = 2.0
# Where systemd puts the credentials of system services, see systemd.exec(5).
# $CREDENTIALS_DIRECTORY does not count: a command run beside the service lacks it.
CREDENTIALS: Final = Path("/run/credentials")
_TOO_OPEN: Final = stat.S_IRWXO | stat.S_IWGRP
_WRITE: Final = "write the PIN to the file; a running server then uses it by itself"
_CREATE: Final = (
    "create it with mode 0400 and write the PIN to it, or correct token.pin_file"
)
_START: Final = (
    "a credential exists while its service runs: start the service, or correct "
    "LoadCredential= of the unit or token.pin_file"
)


REPLACE: Final = (
    "put the right PIN into the PIN file; if it is right already, run "
    "`hsm-kms token retry-pin`"
)
REPLACE_CREDENTIAL: Final = (
    "put the right PIN where systemd loads the credential from, restart the service, "
    "then run `hsm-kms token retry-pin`"
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


def credential_of(path: Path) -> str:
    """Return the real path of a PIN file that is a credential of systemd, else ""."""
    real = os.path.realpath(path)
    return real if real.startswith(f"{CREDENTIALS}/") else ""


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
            hint=_cure_of(error, path),
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


def _cure_of(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOENT:
        return _START if credential_of(path) else _CREATE
    enter = f"let user {os.geteuid()} read it, and no other user except root"
    return hint_for(error, path, enter)
