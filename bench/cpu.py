"""Read what processes have used: CPU time and memory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_TICKS = os.sysconf("SC_CLK_TCK")
_UTIME = 11  # after the name, proc(5)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that some processes have used together, in seconds."""
    return sum(_of_one(pid) for pid in pids)


def _of_one(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / _TICKS


def rss_mb(pid: int) -> float:
    """Return the resident set of a process, in MB."""
    return _kilobytes("VmRSS", Path(f"/proc/{pid}/status")) / 1024


def pss_mb(pid: int) -> float:
    """Return the memory of a process with its share of shared pages, in MB."""
    return _kilobytes("Pss", Path(f"/proc/{pid}/smaps_rollup")) / 1024


def _kilobytes(name: str, file: Path) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{file} has no {name}")
    return int(found[1])
