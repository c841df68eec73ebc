"""Find promtool and Prometheus: installed, or unpacked by packages-prometheus.sh."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """Return the path of `promtool` or `prometheus`; skip the test if there is none."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    cache = Path(xdg) if xdg else Path.home() / ".cache"
    unpacked = cache / "hsm-kms" / "prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.is_file() else None)
    if found is None:
        pytest.skip(f"{name} is missing; make test-alerts gets it")
    return found
