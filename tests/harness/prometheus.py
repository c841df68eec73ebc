"""Find promtool and Prometheus: installed, or unpacked by packages-prometheus.sh."""

from __future__ import annotations

import shutil

import pytest

from tests.harness.kept import kept


def tool(name: str) -> str:
    """Return the path of `promtool` or `prometheus`; skip the test if there is none."""
    unpacked = kept("prometheus") / "usr" / "bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.is_file() else None)
    if found is None:
        pytest.skip(f"{name} is missing; make test-alerts gets it")
    return found
