"""Child processes that never outlive the test run, and waiting with a bound."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, TypeVar

from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")
# A killed test run leaves no child behind: the kernel ends it with its parent.
TIED = [*(["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else [])]
STOP_TIMEOUT = patient(30.0)  # seconds
TAIL = 4_000  # characters of a log that an error shows
START_TIMEOUT = 90.0  # seconds; four on an idle machine
START_TRIES = 3  # another process may take a port between its choice and its use


def tails(logs: Iterable[Path]) -> list[tuple[str, str]]:
    """Return the path and the end of each log, as sections of a report."""
    return [(str(log), log.read_text(errors="replace")[-TAIL:]) for log in sorted(logs)]


def wait_for(
    what: str, check: Callable[[], T], *, timeout: float, every: float = 0.05
) -> T:
    """Call `check` until it returns something true, and return that.

    Args:
        what: What is waited for, for the error.
        check: May raise OSError, which counts as not yet.
        timeout: Seconds, to be multiplied by HSM_KMS_PATIENCE.
        every: Seconds between two calls.

    Raises:
        TimeoutError: It never did; carries the last result or error.
    """
    end = time.monotonic() + patient(timeout)
    last: object = None
    while time.monotonic() < end:
        try:
            if result := check():
                return result
            last = result
        except OSError as error:
            last = error
        time.sleep(every)
    msg = f"no {what} within {patient(timeout):.0f} s; last: {last!r}"
    raise TimeoutError(msg)


def free_ports(count: int) -> list[int]:
    """Pick loopback TCP ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Child:
    """One program in the foreground, its output in a file."""

    def __init__(
        self,
        args: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*TIED, *map(str, args)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return True if the program has not ended."""
        return self._process.poll() is None

    def check(self) -> None:
        """Fail with the end of its output if it has ended.

        Raises:
            RuntimeError: It has.
        """
        if not self.running:
            tail = self.log.read_text(errors="replace")[-TAIL:]
            msg = f"{self.log.stem} ended with {self._process.returncode}:\n{tail}"
            raise RuntimeError(msg)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait(STOP_TIMEOUT)

    def stop(self) -> None:
        """End it in order, and as a crash would if it takes too long."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()


def started(start: Callable[[], list[Child]]) -> list[Child]:
    """Start programs that listen, once more if a port was taken meanwhile."""
    for _ in range(START_TRIES - 1):
        try:
            return start()
        except RuntimeError as error:
            if "address already in use" not in str(error):
                raise
    return start()


def awaited(
    name: str,
    children: list[Child],
    ready: Callable[[], bool],
    seconds: float = START_TIMEOUT,
) -> list[Child]:
    """Return the programs once they are ready; kill them if that takes too long."""
    try:
        wait_for(f"answer of {name}", ready, timeout=seconds)
    except BaseException:
        for child in children:
            child.kill()
        raise
    return children
