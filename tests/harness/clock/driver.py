"""A wall clock that a test moves while a server runs by it."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from hsm_kms import clock
from tests.harness.compiled import shared_library

SOURCE = Path(__file__).parent / "clock.c"
YEAR = 365 * 24 * 3600.0
_SECONDS = struct.Struct("=d")


class Clock:
    """The clock of one node.

    Args:
        directory: Where the file lives that tells by how much it is off.
        seconds: By how much it is off at first.

    Attributes:
        env: What a process needs in its environment to go by it.
        seconds: By how much it is off now.
    """

    def __init__(self, directory: Path, seconds: float = 0.0) -> None:
        self._file = directory / "clock"
        self._file.write_bytes(_SECONDS.pack(seconds))
        self.seconds = seconds
        self.env = {"LD_PRELOAD": str(_library()), "HSM_KMS_CLOCK": str(self._file)}

    def set(self, seconds: float) -> None:
        """Let it be off by so many seconds from now on."""
        with self._file.open("r+b") as file:  # in place: it is mapped
            file.write(_SECONDS.pack(seconds))
        self.seconds = seconds

    def move(self, seconds: float) -> None:
        """Move it forward, or back."""
        self.set(self.seconds + seconds)

    def now(self) -> float:
        """What it shows, in seconds since the Unix epoch."""
        return clock.now() + self.seconds


def _library() -> Path:
    """Path of the compiled library, made once for all test processes."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed: make test installs it")
    return shared_library(SOURCE, "-ldl", "-lm")
