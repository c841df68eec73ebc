"""Kill one process, and no other that has its process id later."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING, Final

from hsm_kms.log import get_logger

if TYPE_CHECKING:
    import asyncio

_UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EPERM})

_log = get_logger(__name__)


class Killer:
    """Send SIGKILL to a child process.

    A pidfd names the process itself, so it cannot hit another one. Where the kernel has
    no pidfds (before Linux 5.3, in gVisor, or behind an old seccomp profile), the
    process id is used for as long as the child is not known to have ended: it stays
    taken until the child has been waited for.

    asyncio's own `kill` is not used: it may wait for the child before asyncio's watcher
    does, which then does not know the exit code.

    Args:
        process: The child.

    Raises:
        OSError: No descriptor is left.
    """

    _reported = False  # in this process

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._pidfd: int | None = None
        self._ended = False
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            # The child ended at once, and asyncio's watcher has waited for it.
            self._ended = True
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._report(error)

    def kill(self) -> None:
        """Send SIGKILL; do nothing if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            elif not self._ended and self._process.returncode is None:
                os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the pidfd, once the process has ended or must be left alone."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    @classmethod
    def _report(cls, error: OSError) -> None:
        if cls._reported:
            return
        cls._reported = True
        _log.warning(
            "no pidfds: workers are killed by process id",
            error=error.strerror,
            hint="use Linux 5.3 or later, and a seccomp profile that permits "
            "pidfd_open and pidfd_send_signal",
        )
