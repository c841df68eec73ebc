"""What HSM_KMS_REQUIRE names: tests that must not be left out."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRED = frozenset(os.environ.get("HSM_KMS_REQUIRE", "").replace(",", " ").split())


def leave_out(kind: str, reason: str) -> NoReturn:
    """Leave a test out, or fail it where HSM_KMS_REQUIRE names its kind.

    Args:
        kind: What the variable calls tests of this kind.
        reason: Why it cannot or should not run.
    """
    if kind in REQUIRED:
        pytest.fail(f"HSM_KMS_REQUIRE names {kind}, but: {reason}", pytrace=False)
    pytest.skip(reason)
