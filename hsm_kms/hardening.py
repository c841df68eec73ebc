"""Keep the memory of a process out of core files and debuggers.

A core file, or a debugger of the same user, would show keys, DEKs and the PIN. Root can
still read the memory, see docs/threat-model.md and SECURITY.md.
"""

from __future__ import annotations

import ctypes
import os
import resource

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


def harden_process() -> None:
    """Leave no core file, refuse debuggers of the same user, create files 0600.

    A core limit of 0 does not stop a core_pattern that pipes to a program. A process
    that is not dumpable writes no core, and only root can open its /proc/PID/mem.

    Raises:
        OSError: The kernel refused.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(_PR_SET_DUMPABLE, 0)
    os.umask(0o077)


def is_dumpable() -> bool:
    """Return True if the kernel would let this process be dumped or traced."""
    return prctl(_PR_GET_DUMPABLE, 0) != 0


def prctl(option: int, value: int) -> int:
    """Set or read one attribute of this process.

    Args:
        option: A PR_ constant of the system call prctl(2).
        value: The argument of that option.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    answer: int = libc.prctl(ctypes.c_int(option), number, zero, zero, zero)
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "prctl")
    return answer
