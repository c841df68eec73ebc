"""A disk that hangs, or has no file locks, under the state directory of a server."""

from __future__ import annotations

from pathlib import Path

from tests.harness.compiled import shared_library

SOURCE = Path(__file__).parent / "disk.c"


class Disk:
    """The disk that holds one directory.

    Args:
        directory: The directory, with a resolved path.

    Attributes:
        env: What a process needs in its environment to be on this disk.
    """

    def __init__(self, directory: Path) -> None:
        self._hang = Path(f"{directory}.hang")
        self._nolocks = Path(f"{directory}.nolocks")
        library = shared_library(SOURCE, "-ldl")
        self.env = {"LD_PRELOAD": str(library), "HSM_KMS_DISK": str(directory)}

    def hang(self) -> None:
        """Let writes wait from now on."""
        self._hang.touch()

    def release(self) -> None:
        """Let writes go on."""
        self._hang.unlink()

    def lose_locks(self) -> None:
        """Let nobody lock a file from now on."""
        self._nolocks.touch()
