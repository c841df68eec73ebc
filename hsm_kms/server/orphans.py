"""Reap the processes that vendor modules leave behind, where this process is init.

As PID 1 of a container the server becomes the parent of every process whose own parent
ended. Nobody else waits for them, and each would keep its process id permanently.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final

_LOOK_SECONDS: Final = 2.0


async def reap_orphans() -> None:
    """Wait for ended processes that nobody else waits for, until cancelled.

    Return at once if this process is not PID 1: then another process is init.

    The workers are children of this process, too, and asyncio waits for them within
    milliseconds. What is still there at the second look is an orphan.
    """
    seen: frozenset[int] = frozenset()
    while os.getpid() == 1:
        await asyncio.sleep(_LOOK_SECONDS)
        ended = _ended_children()
        for pid in ended & seen:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - does not block
        seen = ended - seen


def _ended_children() -> frozenset[int]:
    """Return the children of this process that have ended and were not waited for."""
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return frozenset()
    except ChildProcessError:
        return frozenset()
    return frozenset(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and _is_ended_child(entry)
    )


def _is_ended_child(process: Path) -> bool:
    try:
        stat = (process / "stat").read_bytes()  # a name need not be text
    except OSError:
        return False
    state, parent, *_ = stat.rpartition(b")")[2].split()  # proc_pid_stat(5)
    return state == b"Z" and int(parent) == os.getpid()
