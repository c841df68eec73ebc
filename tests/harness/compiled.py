"""C libraries of the tests' own, compiled once for all test processes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.kept import locked
from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import Sequence

_ALWAYS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def shared_library(source: Path, *flags: str, parts: Sequence[Path] = ()) -> Path:
    """Path of the compiled library. Skips the test where there is no compiler.

    Args:
        source: The C file.
        flags: For gcc, after the file.
        parts: Other files that it includes.
    """
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed: make test installs it")
    cache = Path(tempfile.gettempdir()) / f"hsm-kms-{source.stem}-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.lstat().st_uid != os.getuid():
        raise PermissionError(f"{cache} belongs to somebody else")
    text = b"".join(part.read_bytes() for part in (source, *parts))
    library = cache / f"{hashlib.sha256(text).hexdigest()[:16]}.so"
    with locked(cache / "lock"):
        if not library.exists():
            unfinished = library.with_suffix(".part")
            subprocess.run(
                ["gcc", *_ALWAYS, str(source), "-o", str(unfinished), *flags],
                check=True,
                timeout=patient(60),
            )
            unfinished.rename(library)
    return library
