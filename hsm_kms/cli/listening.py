"""Find out why the KMS socket cannot be used, because gRPC hardly says."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import HsmKmsError

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS: Final = 3.0
_START: Final = "start `hsm-kms serve`, or read the server's log"


def require_listening(path: Path) -> None:
    """Connect to a unix socket, and close the connection.

    Args:
        path: The socket.

    Raises:
        HsmKmsError: There is no such socket, no server listens on it, or this user may
            not use it.
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_SECONDS)
            probe.connect(os.fspath(path))
    except OSError as error:
        raise _failure(path, error) from None


def _failure(path: Path, error: OSError) -> HsmKmsError:
    if error.errno == errno.ENOENT:
        return HsmKmsError(f"the KMS socket {path} does not exist", hint=_START)
    if error.errno == errno.ECONNREFUSED and _is_socket(path):
        return HsmKmsError(f"no server listens on the KMS socket {path}", hint=_START)
    if error.errno == errno.ECONNREFUSED:
        return HsmKmsError(f"{path} is not a socket", hint="give the KMS socket")
    cause = f"the KMS socket {path} cannot be used: {error.strerror or error}"
    if error.errno in {errno.EACCES, errno.EPERM}:
        owner = _owner(path)
        who = f"user {owner}, or as root" if owner else "root"
        return HsmKmsError(
            f"{cause}; this command runs as user {os.geteuid()}",
            hint=f"run it as {who}",
        )
    return HsmKmsError(cause)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _owner(path: Path) -> int | None:
    """Return the owner of the socket, or of the first directory that can be seen."""
    for each in (path, *path.absolute().parents):
        try:
            return each.stat().st_uid
        except OSError:
            continue
    return None
