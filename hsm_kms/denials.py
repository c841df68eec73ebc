"""Tell a denial by permissions from one by a security module such as SELinux."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from hsm_kms.users import CAP_DAC_OVERRIDE, has_capability

_SEARCH: Final = 1


def hint_for(error: OSError, path: Path, otherwise: str, *, write: bool = False) -> str:
    """Return a hint for a file or directory that cannot be used.

    Args:
        error: What the kernel said.
        path: The file or directory.
        otherwise: The hint for every other cause.
        write: True if it was to be written.
    """
    if error.errno != errno.EACCES or not _permitted(path, write=write):
        return otherwise
    return beyond_modes(path)


def beyond_modes(path: Path) -> str:
    """Return the hint for a denial that owners and modes do not explain.

    Args:
        path: What this process may not use.
    """
    return (
        f"owner and mode of {path} allow it, so SELinux, AppArmor or an ACL may deny "
        "it: see `ausearch -m avc -ts recent`, the kernel's log and getfacl"
    )


def read_hint(error: OSError, path: Path) -> str:
    """Return a hint for a file that this process cannot read.

    Args:
        error: What the kernel said.
        path: The file.
    """
    readable = f"make it readable for user {os.geteuid()}, group {os.getegid()}"
    return hint_for(error, path, readable)


class Denial(NamedTuple):
    """Name what keeps this process from a socket.

    Args:
        path: The socket, or the first directory above that cannot be entered.
        by_mode: Owner and mode explain it.
    """

    path: Path
    by_mode: bool


def denial_of(socket: Path) -> Denial | None:
    """Return what keeps this process from connecting to a socket.

    Args:
        socket: The socket.

    Returns:
        None if neither the socket nor a directory above does, as far as access(2) says.
    """
    real = Path(os.path.realpath(socket))
    needed = [(each, os.X_OK, _SEARCH) for each in reversed(real.parents)]
    needed.append((real, os.W_OK, stat.S_IWOTH))
    for path, access, bit in needed:
        if not os.access(path, access, effective_ids=True):
            allowed = has_capability(CAP_DAC_OVERRIDE) or _allows(path, bit)
            return Denial(path, by_mode=not allowed)
    return None


def _permitted(path: Path, *, write: bool) -> bool:
    """Return True if the permissions of a path and its directories allow the access."""
    if has_capability(CAP_DAC_OVERRIDE):
        return True
    real = path.resolve()
    try:
        if not all(_allows(each, _SEARCH) for each in reversed(real.parents)):
            return False
        # To write in a directory, a process must be able to search it.
        searched = _SEARCH if real.is_dir() else 0
        return _allows(real, stat.S_IWOTH | searched if write else stat.S_IROTH)
    except PermissionError:  # although every directory above can be searched
        return True
    except OSError:
        return False


def _allows(path: Path, wanted: int) -> bool:
    """Return True if the mode gives this process the bits; see path_resolution(7)."""
    found = path.stat()
    if found.st_uid == os.geteuid():
        given = found.st_mode >> 6
    elif found.st_gid in {os.getegid(), *os.getgroups()}:
        given = found.st_mode >> 3
    else:
        given = found.st_mode
    return given & wanted == wanted
