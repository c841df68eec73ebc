"""Find files that are mounted by themselves, where their directory should be mounted.

A mount of a file shows the file that was there when it was mounted. Editors, the
kubelet and every careful program replace a file by another one of the same name, and a
server that starts makes a new socket; only a mount of the directory shows them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hsm_kms.log import get_logger
from hsm_kms.server import api_servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hsm_kms.config.schema import Config

_log = get_logger(__name__)

CURE: Final = "mount its directory instead"

_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")  # see proc_pid_mountinfo(5)


def mounted_files(config: Config, path: Path) -> dict[str, str]:
    """Return what is wrong, by setting, with files of which no new version appears.

    Args:
        config: The configuration.
        path: The file it came from.
    """
    settings = {"configuration": path, "token.pin_file": config.token.pin_file}
    points = {point for point, _ in _mounts("self")}
    return {
        setting: f"{file} is mounted as a file, so no change of it appears here"
        for setting, file in settings.items()
        if file is not None and os.path.realpath(file) in points
    }


def warn(config: Config, path: Path) -> None:
    """Log what `mounted_files` finds."""
    for setting, cause in mounted_files(config, path).items():
        _log.warning(
            "a file is mounted by itself", setting=setting, error=cause, hint=CURE
        )


def api_servers_with(socket: Path) -> list[int]:
    """Return the kube-apiserver processes in which this socket is mounted as a file.

    Such an API server cannot connect once the plugin has restarted.

    Args:
        socket: The KMS socket; a container may have it in another directory.
    """
    return [each for each in api_servers.pids() if _has_mounted(each, socket)]


def _has_mounted(pid: int, file: Path) -> bool:
    try:
        mounts = [map(Path, each) for each in _mounts(str(pid))]
    except OSError:  # it has ended, or this user may not look at it
        return False
    return any(file.name == point.name == root.name for point, root in mounts)


def _mounts(process: str) -> Iterator[tuple[str, str]]:
    """Yield each mount point, and the path in its file system that is mounted there."""
    # A path may have any bytes but these two; the kernel escapes both in it.
    for line in Path(f"/proc/{process}/mountinfo").read_bytes().split(b"\n")[:-1]:
        fields = line.split(b" ")
        yield _plain(fields[4]), _plain(fields[3])


def _plain(path: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda octal: bytes([int(octal[1], 8)]), path))
