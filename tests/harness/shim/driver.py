"""The fault shim: build it, tell it what goes wrong, read what it counted.

tests/harness/shim/pkcs11_shim.c says what its control file may hold.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.harness.compiled import shared_library
from tests.harness.softhsm import softhsm_module

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parent / "pkcs11_shim.c"
INCLUDE = Path("/usr/include/p11-kit-1")
MISSING = "gcc and libp11-kit-dev are needed: make test installs them"

# struct shared: name, calls, acted; pid, slot, session.
_FUNCTION = struct.Struct("=32sQQ")
_SESSION = struct.Struct("=qQQ")
_FUNCTIONS = 68
_SESSIONS = 1024


class Calls(NamedTuple):
    """Calls of one function, and rules of the control file that acted on it."""

    calls: int
    acted: int


def require_compiler() -> None:
    """Skip the test where compiler or header is missing."""
    if shutil.which("gcc") is None or not (INCLUDE / "p11-kit/pkcs11.h").exists():
        pytest.skip(MISSING)


def build() -> Path:
    """Path of the compiled shim, made once for all test processes."""
    require_compiler()
    parts = sorted({*SOURCE.parent.glob("*.[ch]")} - {SOURCE})
    flags = ("-I", str(INCLUDE), "-ldl", "-pthread")
    return shared_library(SOURCE, *flags, parts=parts)


class Shim:
    """One control file and one counts file, for all processes of a test.

    Args:
        directory: Where the two files live.
        real: The module behind the shim; SoftHSM2 where None.
    """

    def __init__(self, directory: Path, real: str | None = None) -> None:
        self.module = build()
        self._control = directory / "shim.control"
        self._counts = directory / "shim.counts"
        self.env = {
            "HSM_KMS_SHIM_MODULE": real or softhsm_module(),
            "HSM_KMS_SHIM_CONTROL": str(self._control),
            "HSM_KMS_SHIM_COUNTS": str(self._counts),
        }
        self._counts.touch(mode=0o600)
        self._set_ns = 0
        self.set()

    def set(self, *lines: str) -> None:
        """Replace the control file, atomically; the next call sees it.

        The shim tells files apart by inode and time. The file system may use an inode
        again, and for some milliseconds gives every file the same time.
        """
        new = self._control.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        self._set_ns = max(time.time_ns(), self._set_ns + 1000)
        os.utime(new, ns=(self._set_ns, self._set_ns))
        new.rename(self._control)

    def clear(self) -> None:
        """Let everything go well again."""
        self.set()

    def counts(self) -> dict[str, Calls]:
        """Calls since the test began, of every function; empty before the first."""
        return {
            name.rstrip(b"\0").decode(): Calls(calls, acted)
            for name, calls, acted in self._records(_FUNCTION, 0, _FUNCTIONS)
        }

    def calls(self, function: str) -> int:
        """Calls of one function since the test began, in all processes."""
        return self.counts().get(function, Calls(0, 0)).calls

    def acted(self, function: str) -> int:
        """How often a rule of the control file acted on a function."""
        return self.counts().get(function, Calls(0, 0)).acted

    def sessions(self) -> dict[int, int]:
        """Sessions that count against max_sessions, by process id."""
        found: dict[int, int] = {}
        for pid, _, _ in self._records(_SESSION, self._session_offset, _SESSIONS):
            if pid:
                found[pid] = found.get(pid, 0) + 1
        return found

    def forget_sessions(self) -> None:
        """Clean up by hand, as one does on a token that keeps dead ones."""
        if not self._counts.stat().st_size:
            return
        with self._counts.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
            start = self._session_offset
            shared[start : start + _SESSION.size * _SESSIONS] = bytes(
                _SESSION.size * _SESSIONS
            )

    _session_offset = _FUNCTION.size * _FUNCTIONS

    def _records(
        self, layout: struct.Struct, start: int, count: int
    ) -> Iterator[tuple[Any, int, int]]:
        data = self._counts.read_bytes()[start : start + layout.size * count]
        yield from layout.iter_unpack(data)
