"""Processes of a test: their children, their state, their mount namespace."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.wait import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


def without_coverage() -> dict[str, str]:
    """Return the environment of a process that must not start coverage.

    In CI every Python starts it before a line of ours, where it imports much and
    may swallow a Ctrl-C.
    """
    return {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}


def children_of(pid: int) -> list[int]:
    """Processes that the main thread of a process started; none once it is gone."""
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def children() -> set[int]:
    """Process ids of the token workers that this very process started.

    Servers of other tests may be its children too; their workers are not.
    """
    return {pid for pid in children_of(os.getpid()) if _is_worker(pid)}


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def looking_inside() -> Iterator[None]:
    """Skip the test if this user may not see what /proc says of a hardened process."""
    try:
        yield
    except PermissionError:
        pytest.skip("only root may look into a hardened process")


def open_files(pid: int) -> dict[int, str]:
    """Return what a process has open, by descriptor, as /proc names it."""
    with looking_inside():
        descriptors = [*Path(f"/proc/{pid}/fd").iterdir()]
    links = {int(each.name): _link(each) for each in descriptors}
    return {number: link for number, link in links.items() if link}


def has_open(pid: int, file: Path) -> bool:
    """Return True if a process has a file open."""
    return str(file.resolve()) in open_files(pid).values()


def _link(descriptor: Path) -> str:
    """Return what a descriptor of /proc stands for, "" if it was closed meanwhile."""
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""


def command_lines(pid: int) -> str:
    """Arguments and environment of a process, as others on the node see them."""
    return "\0".join(_read(pid, name) for name in ("cmdline", "environ"))


def name_of(pid: int) -> str:
    """Return the name of the program that a process runs; "" once it is gone."""
    return _read(pid, "comm").strip()


def keeps(pid: int, number: int) -> bool:
    """Return True if a process blocks or handles a signal.

    `hsm-kms` handles SIGTERM before it unblocks it, so this stays true.
    """
    status = _read(pid, "status")
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) & 1 << (number - 1) for mask in masks)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return state(pid) not in {"", "Z"}


def state(pid: int) -> str:
    """State of a process as ps shows it, such as "S"; "" once it is gone."""
    stat = _read(pid, "stat")
    return stat.rpartition(")")[2].split()[0] if stat else ""


def in_namespace(prefix: list[str], script: str, *arguments: str) -> list[str]:
    """A command that runs a shell script in a mount namespace, then the arguments."""
    return [*prefix, "sh", "-c", f'{script} && exec "$@"', "sh", *arguments]


def namespace_prefix() -> list[str] | None:
    """The command that makes a mount namespace, or None where none can be made."""
    prefix = ["unshare", "--mount"]
    if os.geteuid() != 0:
        prefix.append("--map-root-user")
    probe = [*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return None
    return prefix


def stop(pid: int) -> None:
    """Stop a process, with all its threads."""
    os.kill(pid, signal.SIGSTOP)
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    wait_for(lambda: all(" T " in (t / "stat").read_text() for t in threads))


def _is_worker(pid: int) -> bool:
    return "hsm_kms.worker" in _read(pid, "cmdline")


def _read(pid: int, name: str) -> str:
    """Return a file of a process in /proc; "" if it is not there yet, or gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
