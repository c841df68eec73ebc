"""What a process does first, so that its memory stays its own.

A core file or a debugger of the same user would show keys, DEKs and the PIN.
Root can read memory all the same; docs and SECURITY.md say so.
"""

from __future__ import annotations

import ctypes
import os
import resource

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
    prctl(_PR_SET_DUMPABLE, 0)
    os.umask(0o077)


def is_dumpable() -> bool:
    """Whether the kernel would let this process be dumped or traced."""
    return prctl(_PR_GET_DUMPABLE, 0) != 0


def prctl(option: int, value: int) -> int:
    """Set or read one attribute of this process.

    Args:
        option: A PR_ constant of the system call prctl(2).
        value: Its argument.

    Raises:
        OSError: If the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    answer: int = libc.prctl(ctypes.c_int(option), number, zero, zero, zero)
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "prctl")
    return answer
