"""Try a KMS plugin as kube-apiserver: in a process with its user, groups, capabilities.

The process is a new interpreter, which imports everything before it gives up root's
rights: another user may not be able to read the packages. It reads a `Trial` from
stdin, and writes a `Result` to stdout.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms.another_python import python_command
from hsm_kms.cli.listening import failure
from hsm_kms.cli.probe.examination import Request, Result, examine
from hsm_kms.denials import beyond_modes, denial_of
from hsm_kms.errors import HsmKmsError
from hsm_kms.hardening import prctl
from hsm_kms.pdeathsig import die_with_parent
from hsm_kms.server.api_servers import Credentials, credentials_of

if TYPE_CHECKING:
    from pathlib import Path

_PR_SET_KEEPCAPS: Final = 8
_CAPABILITY_VERSION_3: Final = 0x20080522  # see capset(2)
_WORD_BITS: Final = 32
_STEPS: Final = 'docs/troubleshooting.md has the steps under "Permission denied"'


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Say what is to be tried, and as whom.

    Args:
        request: What is to be tried.
        credentials: As whom.
        parent: Process id of the command.
    """

    request: Request
    credentials: Credentials
    parent: int


def examine_as(credentials: Credentials, request: Request) -> Result:
    """Try the plugin in another process.

    Args:
        credentials: As whom.
        request: What is to be tried.

    Raises:
        HsmKmsError: This process may not become that user.
    """
    trial = Trial(request=request, credentials=credentials, parent=os.getpid())
    try:
        # In a session of its own Ctrl-C does not reach the process: it ends with this
        # one, and prints nothing.
        ended = subprocess.run(  # noqa: S603 - this very interpreter
            python_command("hsm_kms.cli.probe.as_api_server"),
            input=msgspec.json.encode(trial),
            capture_output=True,
            check=False,
            start_new_session=True,
        )
    except OSError as error:
        raise HsmKmsError(f"{sys.executable} cannot run: {error.strerror}") from None
    if ended.returncode:
        lines = ended.stderr.decode(errors="replace").splitlines()
        why = lines[-1] if lines else f"its process ended with {ended.returncode}"
        raise HsmKmsError(
            f"this command cannot act as kube-apiserver ({credentials}): {why}",
            hint="run it as root, outside containers",
        )
    return msgspec.json.decode(ended.stdout, type=Result)


def main() -> None:
    """Run the trial that stdin describes; this is the other process."""
    trial = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    try:
        _become(trial.credentials)
    except OSError as error:
        sys.exit(error.strerror)
    die_with_parent(trial.parent)  # the kernel forgets this when the user changes
    result = examine(trial.request, partial(_refused, trial.credentials))
    sys.stdout.buffer.write(msgspec.json.encode(result))


def _become(wanted: Credentials) -> None:
    """Give up this process's rights for those of another process.

    Raises:
        PermissionError: This process is not root, or has too few capabilities.
    """
    mine = credentials_of(os.getpid())
    if mine == wanted:
        return
    os.setgroups(wanted.groups)
    os.setresgid(wanted.gid, wanted.gid, wanted.gid)
    prctl(_PR_SET_KEEPCAPS, 1)  # or all are lost with root's user id
    os.setresuid(wanted.uid, wanted.uid, wanted.uid)
    _limit_capabilities(wanted.capabilities & mine.capabilities)


def _limit_capabilities(wanted: int) -> None:
    """Have exactly these capabilities, permitted and in effect."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = wanted % (1 << _WORD_BITS), wanted >> _WORD_BITS
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, data):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _refused(who: Credentials, socket: Path, error: OSError) -> HsmKmsError:
    """Return the error for a socket to which kube-apiserver cannot connect."""
    if error.errno not in {errno.EACCES, errno.EPERM}:
        return failure(socket, error)
    denial = denial_of(socket)
    if denial is None:
        return HsmKmsError(
            f"kube-apiserver ({who}) may not connect to {socket}",
            hint=beyond_modes(socket),
        )
    found = denial.path.stat()
    modes = f"{stat.filemode(found.st_mode)}, user {found.st_uid}, group {found.st_gid}"
    if stat.S_ISDIR(found.st_mode):
        cause = f"may not enter the directory {denial.path} ({modes})"
        cure = (
            f"let a group of kube-apiserver enter it, now and at every boot: chgrp "
            f"GROUP {denial.path}, chmod g+x {denial.path}"
        )
    else:
        cause = f"may not connect to the socket {denial.path} ({modes})"
        cure = (
            "give the socket a group of kube-apiserver, and mode 0660 (listen.group "
            "and listen.mode of hsm-kms)"
        )
    hint = f"{cure}; {_STEPS}" if denial.by_mode else beyond_modes(denial.path)
    return HsmKmsError(f"kube-apiserver ({who}) {cause}", hint=hint)
