"""Find out why the KMS socket cannot be used, because gRPC hardly says."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from hsm_kms.errors import HsmKmsError
from hsm_kms.server.socket_path import peer_of

_SECONDS: Final = 3.0
_START: Final = "start the server (`hsm-kms serve`), or read its log"

# What an HTTP/2 client sends first, RFC 9113 section 3.4: the preface, and a SETTINGS
# frame without settings. A server sends a SETTINGS frame first.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
_FRAME_HEADER_BYTES: Final = 9
_SETTINGS: Final = 4

Refused: TypeAlias = Callable[[Path, OSError], HsmKmsError]


def require_kms(
    path: Path, seconds: float = _SECONDS, refused: Refused | None = None
) -> int:
    """Connect to a unix socket, find out if gRPC is served there, and close it.

    Args:
        path: The socket.
        seconds: How long the server may take to answer.
        refused: Makes the error if the kernel refuses to connect; None for `failure`.

    Returns:
        The process id of the server; 0 if this process cannot see it.

    Raises:
        HsmKmsError: There is no such socket, no server listens on it, this user may
            not use it, or the server does not answer, or with something else.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(seconds)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            raise (refused or failure)(path, error) from None
        pid = peer_of(probe)
        _require_grpc(path, pid, _greeting(probe))
    return pid


def _greeting(probe: socket.socket) -> bytes | None:
    """Return the first bytes of the server; None if it sends none in time."""
    greeting = b""
    try:
        probe.sendall(_PREFACE)
        while len(greeting) < _FRAME_HEADER_BYTES:
            if not (more := probe.recv(_FRAME_HEADER_BYTES - len(greeting))):
                break
            greeting += more
    except TimeoutError:
        return greeting or None
    except OSError:  # it has closed the connection
        pass
    return greeting


def _require_grpc(path: Path, pid: int, greeting: bytes | None) -> None:
    if greeting is None:
        raise _silent(path, pid)
    if greeting.startswith(b"HTTP/"):
        raise HsmKmsError(
            f"{path} belongs to an HTTP server, and not to a KMS plugin",
            hint="give the KMS socket, which listen.socket names; http.admin_socket is "
            "another one",
        )
    if len(greeting) < _FRAME_HEADER_BYTES or greeting[3] != _SETTINGS:
        raise HsmKmsError(
            f"the server on {path}{_named(pid)} does not speak gRPC",
            hint="give the socket of a KMS plugin",
        )


def _silent(path: Path, pid: int) -> HsmKmsError:
    cause = f"the server on {path}{_named(pid)} does not answer"
    if _is_stopped(pid):
        return HsmKmsError(f"{cause}: it is stopped", hint=f"run: kill -CONT {pid}")
    return HsmKmsError(cause, hint="read its log, and restart it")


def _named(pid: int) -> str:
    return f" (process {pid})" if pid else ""


def _is_stopped(pid: int) -> bool:
    """Return True if a process was stopped, by SIGSTOP or a debugger.

    Args:
        pid: Its process id; 0 for a process that cannot be seen.
    """
    try:
        found = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return found.rpartition(b")")[2].split()[0] in {b"T", b"t"}


def failure(path: Path, error: OSError) -> HsmKmsError:
    """Return the error for a socket to which this process cannot connect.

    Args:
        path: The socket.
        error: Why it cannot.
    """
    if error.errno == errno.ENOENT:
        return HsmKmsError(f"the KMS socket {path} does not exist", hint=_START)
    if error.errno == errno.ECONNREFUSED and _is_socket(path):
        return HsmKmsError(f"no server listens on the KMS socket {path}", hint=_START)
    if error.errno == errno.ECONNREFUSED:
        return HsmKmsError(f"{path} is not a socket", hint="give the KMS socket")
    if isinstance(error, TimeoutError | BlockingIOError):
        cause = f"the server on {path} accepts no connection"
        return HsmKmsError(cause, hint="read its log, and restart it")
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
