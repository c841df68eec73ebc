"""Start processes for which the kernel's random bytes are always the same."""

from __future__ import annotations

from pathlib import Path

from tests.harness.compiled import shared_library

SOURCE = Path(__file__).parent / "entropy.c"


def frozen_entropy() -> dict[str, str]:
    """Return the environment that takes the randomness from a process.

    Skips the test where there is no compiler.
    """
    return {"LD_PRELOAD": str(shared_library(SOURCE, "-ldl"))}
