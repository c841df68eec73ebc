"""Start processes for which the kernel's random bytes are always the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.harness.compiled import shared_library

SOURCE = Path(__file__).parent / "entropy.c"


def frozen_entropy() -> dict[str, str]:
    """Return the environment that takes the randomness from a process.

    Skips the test where there is no compiler.
    """
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed: make test installs it")
    return {"LD_PRELOAD": str(shared_library(SOURCE, "-ldl"))}
