"""What tests build or unpack once and keep, and a lock for those that do."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def kept(name: str) -> Path:
    """Return a folder of this user's cache, which may not exist yet.

    Args:
        name: What is kept there.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hsm-kms" / name


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time go on.

    Args:
        path: The file of the lock.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
