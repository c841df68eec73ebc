"""Find out as which user hsm-kms serves on this node, and how to run as that user.

The owners of the state directory and of the PIN file say it: a server refuses a state
directory of another user, and a PIN file of another user than root or itself.
"""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from pathlib import Path
from typing import Final, NamedTuple

from hsm_kms.errors import WrongUserError

CAP_CHOWN: Final = 0  # bits of capabilities(7)
CAP_DAC_OVERRIDE: Final = 1

_ROOT = 0


class User(NamedTuple):
    """Name a user and their main group by number."""

    uid: int
    gid: int


def require_service_user(state_dir: Path, pin_file: Path | None) -> None:
    """Refuse to go on as another user than the server's.

    What another user creates the server could not use, and what the server owns another
    user must not trust.

    Args:
        state_dir: The state directory.
        pin_file: The PIN file; None if the token needs no login.

    Raises:
        WrongUserError: The files belong to another user than this process's, and agree
            on which; or this process's user may not look at any of them.
    """
    if all(_is_hidden(path) for path in (state_dir, pin_file) if path is not None):
        raise WrongUserError(
            f"user {os.geteuid()} may not look at {state_dir}, so hsm-kms serves as "
            "another user here",
            hint="run this command as that user; root is told which it is",
        )
    user = service_user(state_dir, pin_file)
    if user is not None and user.uid != os.geteuid():
        owned = pin_file if _owner(state_dir) is None else state_dir
        raise WrongUserError(
            f"hsm-kms serves as user {user.uid} here, which owns {owned}; this process "
            f"runs as user {os.geteuid()}",
            hint=f"as root, run: {as_user(user, sys.argv)}",
        )


def service_user(state_dir: Path, pin_file: Path | None) -> User | None:
    """Return the user that the files belong to, or None if they do not say.

    Args:
        state_dir: The state directory.
        pin_file: The PIN file; None if the token needs no login.
    """
    state, pin = _owner(state_dir), _owner(pin_file)
    if state is None:
        return pin if pin is not None and pin.uid != _ROOT else None
    agree = pin is None or pin.uid in {_ROOT, state.uid}
    return state if agree else None


def as_user(user: User, command: list[str]) -> str:
    """Return the line by which root runs a command as a user.

    Args:
        user: The user.
        command: Program and arguments.
    """
    try:
        pwd.getpwuid(user.uid)
        groups = "--init-groups"
    except KeyError:  # a user of the image alone has no groups on the node
        groups = "--clear-groups"
    program = command[0] if Path(command[0]).name == "hsm-kms" else "hsm-kms"
    return (
        f"setpriv --reuid={user.uid} --regid={user.gid} {groups} "
        f"{shlex.join([program, *command[1:]])}"
    )


def install_line(path: Path, mode: int = 0o700) -> str:
    """Return the line by which root creates a directory for this process's user."""
    quoted = shlex.quote(str(path))
    return f"install -d -m {mode:04o} -o {os.geteuid()} -g {os.getegid()} {quoted}"


def _is_hidden(path: Path) -> bool:
    """Return True if this process's user may not enter a directory above a path."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _owner(path: Path | None) -> User | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return User(found.st_uid, found.st_gid) if found is not None else None


def has_capability(bit: int) -> bool:
    """Return True if this process has a capability in effect.

    Args:
        bit: Its number, such as `CAP_CHOWN`.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> bit & 1)
    return False
