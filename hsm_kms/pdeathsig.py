"""Run a program that ends with the process that started this one.

`another_python` calls `main` with the arguments PPID PROGRAM ARGUMENT...
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from hsm_kms.hardening import prctl

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_ppid: int) -> None:
    """Have the kernel kill this process when the parent's thread that started it ends.

    If the parent ended before this call, the kernel sends no signal, and this process
    exits at once.

    Args:
        expected_ppid: Process ID of the parent, as the parent itself knows it.

    Raises:
        OSError: The kernel refused.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != expected_ppid:
        os._exit(1)


@contextlib.contextmanager
def finish_without_parent() -> Iterator[None]:
    """Let the body finish even if the parent ends; in that case exit afterwards.

    Raises:
        OSError: The kernel refused.
    """
    parent = os.getppid()
    prctl(_PR_SET_PDEATHSIG, 0)
    try:
        yield
    finally:
        die_with_parent(parent)


def main() -> None:
    """Replace this process by the program that the arguments name."""
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is wanted
