"""Log the first lines that a module prints to stderr, and drop all others.

The pipe is our own: with asyncio's a worker would count as running for as long as any
process that its module started holds the other end.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import Final

from hsm_kms.log import get_logger

_LINES: Final = 20  # of a worker's life: a chatty module must not flood the log
_LINE_BYTES: Final = 200
_READ_BYTES: Final = 4096
_PYTHON_ERROR: Final = re.compile(
    rb"(ModuleNotFoundError|ImportError|SyntaxError|Fatal Python error): "
)

_log = get_logger(__name__)


class Stderr:
    """Read the stderr of one worker.

    Args:
        descriptor: The pipe's reading end; closed by `close`, or at its end.
        pid: Process id of the worker, for the log.
    """

    def __init__(self, descriptor: int, pid: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._pid = pid
        self._lines = 0
        self._rest = b""
        self._closed = False
        self._python_error = ""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._readable)

    def close(self) -> None:
        """Log what has been printed so far, and close the pipe."""
        if not self._closed:
            self._readable()
        self._end()

    def python_error(self) -> str:
        """Return the error with which Python ended before the module was loaded, or "".

        Anything else that was printed may be a module's, and of a secret argument.
        """
        if not self._closed:
            self._readable()
        return self._python_error

    def _readable(self) -> None:
        try:
            chunk = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._end()
            return
        *complete, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[:_LINE_BYTES]
        for line in complete:
            if _PYTHON_ERROR.match(line):
                self._python_error = line[:_LINE_BYTES].decode("utf-8", "replace")
            self._lines += 1
            if self._lines <= _LINES:
                text = line[:_LINE_BYTES].decode("utf-8", "replace")
                _log.debug("worker stderr", pid=self._pid, text=text)

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
