"""What a process does first, so that its memory stays its own.

A core file or a debugger of the same user would show keys, DEKs and the PIN.
Root can read memory all the same; docs and SECURITY.md say so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


def harden_process() -> None:
    """Leave no core file, refuse debuggers of the same user, create files 0600.

    A core limit of 0 does not stop a core_pattern that pipes to a program; not
    being dumpable does, and makes /proc/PID/mem root's as well.

    Raises:
        OSError: If the kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    os.umask(0o077)


def die_with_parent(expected_ppid: int) -> None:
    """Be killed when the thread that started this process ends.

    The signal is not sent for a parent that ended before it was asked for;
    such an orphan exits here at once.

    Args:
        expected_ppid: Process id of the parent, as the parent itself knows it.

    Raises:
        OSError: If the kernel refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != expected_ppid:
        os._exit(1)


@contextlib.contextmanager
def finish_without_parent() -> Iterator[None]:
    """What runs in here is not cut short by the parent's end; the exit follows it.

    Raises:
        OSError: If the kernel refuses.
    """
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, 0)
    try:
        yield
    finally:
        die_with_parent(parent)


def is_dumpable() -> bool:
    """Whether the kernel would let this process be dumped or traced."""
    return _prctl(_PR_GET_DUMPABLE, 0) != 0


def _prctl(option: int, value: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    answer: int = libc.prctl(ctypes.c_int(option), number, zero, zero, zero)
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "prctl")
    return answer
