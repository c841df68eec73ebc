"""Clocks that a test moves while a server runs by them."""

from __future__ import annotations

import struct
from pathlib import Path

from hsm_kms import clock
from tests.harness.compiled import shared_library

SOURCE = Path(__file__).parent / "clock.c"
YEAR = 365 * 24 * 3600.0
_SECONDS = struct.Struct("=dd")


class Clock:
    """The clocks of one node.

    Args:
        directory: Where the file lives that tells by how much it is off.
        seconds: By how much the wall clock is off at first.

    Attributes:
        env: What a process needs in its environment to go by them.
        seconds: By how much the wall clock is off now.
        suspended: For how many seconds the node was suspended.
    """

    def __init__(self, directory: Path, seconds: float = 0.0) -> None:
        self._file = directory / "clock"
        self._file.write_bytes(_SECONDS.pack(seconds, 0.0))
        self.seconds = seconds
        self.suspended = 0.0
        library = shared_library(SOURCE, "-ldl", "-lm")
        self.env = {"LD_PRELOAD": str(library), "HSM_KMS_CLOCK": str(self._file)}

    def set(self, seconds: float) -> None:
        """Let the wall clock be off by so many seconds from now on."""
        self.seconds = seconds
        with self._file.open("r+b") as file:  # in place: it is mapped
            file.write(_SECONDS.pack(seconds, self.suspended))

    def move(self, seconds: float) -> None:
        """Move the wall clock forward, or back."""
        self.set(self.seconds + seconds)

    def suspend(self, seconds: float) -> None:
        """Let time pass for the node, but not for its monotonic clock."""
        self.suspended += seconds
        self.move(seconds)

    def now(self) -> float:
        """What it shows, in seconds since the Unix epoch."""
        return clock.now() + self.seconds
