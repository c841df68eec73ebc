"""Find the API servers of this node, and as whom and with which files they run.

Everything comes from /proc; see proc_pid_status(5).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms.errors import HsmKmsError
from hsm_kms.users import CAP_DAC_OVERRIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

# Names of processes that are an API server or contain one: of k3s and of MicroK8s.
NAMES: Final = frozenset({b"kube-apiserver", b"k3s-server", b"kubelite"})
_ENFORCE: Final = Path("/sys/fs/selinux/enforce")
_FS: Final = 3  # of real, effective, saved, and that for access to files


class Credentials(msgspec.Struct, frozen=True):
    """Hold what decides which files a process may use.

    Args:
        uid: User.
        gid: Main group.
        groups: All supplementary groups.
        capabilities: The capabilities in effect, as bits of capabilities(7).
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: int

    def __str__(self) -> str:
        """Return user and groups in words."""
        groups = ", ".join(map(str, self.groups)) or "none"
        who = f"user {self.uid}, group {self.gid}, supplementary groups: {groups}"
        limited = not self.uid and not self.capabilities >> CAP_DAC_OVERRIDE & 1
        return f"{who}; without CAP_DAC_OVERRIDE" if limited else who


class ApiServer(msgspec.Struct, frozen=True):
    """Name a process that is an API server.

    Args:
        pid: Its process id.
        credentials: As whom it runs.
    """

    pid: int
    credentials: Credentials


def pids() -> list[int]:
    """Return the process ids of all API servers that this process can see."""
    return sorted(_pids())


def _pids() -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_bytes().strip() in NAMES:
                yield int(process.name)
        except OSError:  # it has ended, or this user may not look at it
            continue


def the_api_server(pid: int | None) -> ApiServer:
    """Return the API server of this node.

    Args:
        pid: Its process id; None to look for it.

    Raises:
        HsmKmsError: There is none, or there are several that run differently.
    """
    found = [pid] if pid is not None else pids()
    if not found:
        raise HsmKmsError(
            "no kube-apiserver runs on this node, as far as this process can see",
            hint="run this on a control-plane node, outside containers",
        )
    servers = [ApiServer(each, credentials_of(each)) for each in found]
    if len({each.credentials for each in servers}) > 1:
        raise HsmKmsError(
            f"{len(servers)} API servers run on this node, and as different users: "
            f"processes {', '.join(map(str, found))}",
            hint="give one of them: --as-apiserver PROCESS",
        )
    return servers[0]


def credentials_of(pid: int) -> Credentials:
    """Return as whom a process runs.

    Args:
        pid: Its process id.

    Raises:
        HsmKmsError: It has ended, or this user may not look at it.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except OSError as error:
        raise HsmKmsError(f"process {pid} cannot be seen: {error.strerror}") from None
    lines = (line.partition(b":") for line in text.splitlines())
    fields = {name: value.split() for name, _, value in lines}
    return Credentials(
        uid=int(fields[b"Uid"][_FS]),
        gid=int(fields[b"Gid"][_FS]),
        groups=tuple(map(int, fields[b"Groups"])),
        capabilities=int(fields[b"CapEff"][0], 16),
    )


def selinux_label(process: int | str) -> str:
    """Return the label with which SELinux judges a process; "" if it enforces nothing.

    Args:
        process: Its process id, or "self".
    """
    try:
        if _ENFORCE.read_text().strip() != "1":
            return ""
        return Path(f"/proc/{process}/attr/current").read_text().strip("\0\n")
    except OSError:  # the kernel has no SELinux
        return ""


def has_same_file(pid: int, path: Path) -> bool | None:
    """Return True if a process has the same file at a path as this process has.

    Args:
        pid: Its process id; its mount namespace may be another one.
        path: Absolute path.

    Returns:
        None if the process has nothing there.

    Raises:
        OSError: This process may not look, or the process has ended.
    """
    root = Path(f"/proc/{pid}/root")
    root.stat()  # or a process that has ended would have nothing there
    try:
        return os.path.samestat((root / path.relative_to("/")).stat(), path.stat())
    except FileNotFoundError:
        return None
