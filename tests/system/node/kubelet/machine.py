"""The machine under a node: what only one node can have, and what is restored."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.harness.kept import locked
from tests.harness.processes import name_of
from tests.harness.wait import patient
from tests.system.node.kubelet.settings import DIRECTORIES

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUPS: Final = Path("/sys/fs/cgroup")
PODS: Final = "kubepods"  # the cgroup of all pods

_LOCK: Final = Path("/run/lock/hsm-kms-node.lock")
_SYSCTLS: Final = (
    *("vm/overcommit_memory", "vm/panic_on_oom"),
    *("kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)


def missing() -> str | None:
    """Say what keeps a node from being started here, None if nothing does."""
    if os.geteuid() != 0:
        return "a kubelet needs root"
    for tool in ("containerd", "ctr", "runc", "nsenter", "systemd-tmpfiles", "gcc"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    return None


def _names() -> Iterator[str]:
    """Return the name of each process."""
    return (name_of(int(path.name)) for path in Path("/proc").glob("[0-9]*"))


@contextmanager
def machine() -> Iterator[None]:
    """Have this machine alone, and leave it as it was."""
    _LOCK.parent.mkdir(exist_ok=True)
    made = []
    with locked(_LOCK):
        assert "kubelet" not in _names(), "this machine is a node already"
        before = {name: _sysctl(name).read_text() for name in _SYSCTLS}
        try:
            for path in map(Path, DIRECTORIES.values()):
                made += _make(path)
            yield
        finally:
            for name, value in before.items():
                if _sysctl(name).read_text() != value:
                    _sysctl(name).write_text(value)
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir()


def _make(path: Path) -> list[Path]:
    """Make a directory to mount at, and return those that were not there."""
    missing_ones = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing_ones[::-1]


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name


def remove_cgroups() -> None:
    """Remove the empty cgroups of pods, which the kubelet leaves."""
    for pods in [*CGROUPS.glob(f"*/{PODS}"), CGROUPS / PODS]:
        for path in sorted(pods.rglob("*"), reverse=True):
            if path.is_dir():
                _rmdir(path)
        if pods.is_dir():
            _rmdir(pods)


def _rmdir(path: Path) -> None:
    end = time.monotonic() + patient(10)
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.05)
