"""Find what other users could change: files that the server relies on, and their paths.

Who can write to the configuration or the module decides what the server does. The same
is true of every directory above: who can write there can put another file in place.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import WrongUserError
from hsm_kms.log import get_logger
from hsm_kms.users import require_service_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.config.schema import Config

_log = get_logger(__name__)

_MOST_LINKS: Final = 40  # as the kernel has it, see path_resolution(7)


@dataclass(frozen=True, slots=True)
class Weakness:
    """Name a file or directory that another user can change.

    Args:
        setting: What the path is for, as the configuration names it.
        cause: Path and reason.
        cure: A command that mends it.
    """

    setting: str
    cause: str
    cure: str


def weaknesses(config: Config, path: Path) -> list[Weakness]:
    """Return what other users than root and this one can change; each path once.

    Files that are missing are left to those who read them, and so is the mode of the
    PIN file. A file system that is mounted read-only cannot be changed.

    Args:
        config: The configuration.
        path: The file it came from.
    """
    settings = {
        "configuration": path,
        "token.module": config.token.module,
        "token.pin_file": config.token.pin_file,
        "state_dir": config.state_dir,
        "audit.file": config.audit.file,
    }
    found: dict[Path, Weakness] = {}
    for setting, given in settings.items():
        for each in _visited(given.absolute()) if given is not None else ():
            weakness = _weakness(setting, each)
            if weakness is not None:
                found.setdefault(each, weakness)
    return list(found.values())


def warn(config: Config, path: Path) -> None:
    """Log what `weaknesses` finds, or that this is not the user of the files."""
    try:
        require_service_user(config.state_dir, config.token.pin_file)
    except WrongUserError as error:
        # The cures below would take the files from the service.
        _log.warning("this is not the service's user", error=error.sentence)
        return
    for each in weaknesses(config, path):
        _log.warning(
            "another user can change what the server relies on",
            setting=each.setting,
            error=each.cause,
            hint=f"run {each.cure}",
        )


def _visited(path: Path) -> Iterator[Path]:
    """Yield each directory that leads to a file, and the file, through all links."""
    at = Path("/")
    names = list(reversed(path.parts[1:]))
    links = 0
    yield at
    while names:
        name = names.pop()
        if name == "..":
            at = at.parent
            continue
        try:
            if not (at / name).is_symlink():
                (at / name).lstat()
                at /= name
                yield at
                continue
            target = (at / name).readlink()
        except OSError:
            return
        links += 1
        if links > _MOST_LINKS:
            return
        if target.is_absolute():
            at = Path("/")
        names.extend(reversed([part for part in target.parts if part != "/"]))


def _weakness(setting: str, path: Path) -> Weakness | None:
    try:
        found = path.stat()
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return None
    except OSError:
        return None
    if found.st_uid not in {0, os.geteuid()}:
        cause, cure = f"{path} belongs to user {found.st_uid}", f"chown root {path}"
    elif stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        # In a sticky directory only the owner of an entry can replace that entry, and
        # the owner of the next one is looked at, too.
        return None
    elif found.st_mode & stat.S_IWOTH:
        cause, cure = f"every user can write to {path}", f"chmod o-w {path}"
    elif found.st_mode & stat.S_IWGRP and found.st_gid not in {0, os.getegid()}:
        cause, cure = f"group {found.st_gid} can write to {path}", f"chmod g-w {path}"
    else:
        return None
    return Weakness(setting, cause, cure)
