"""Test how a worker process that cannot be made is reported."""

from __future__ import annotations

import os
import sys

import pytest

from hsm_kms.errors import WorkerLostError
from hsm_kms.token.spawn import spawn


async def test_a_python_that_may_not_be_run(tmp_path, monkeypatch):
    """The hint names user and file, also behind the link of a virtual environment."""
    real = tmp_path / "python3"
    real.touch(0o600)
    link = tmp_path / "python"
    link.symlink_to(real)
    monkeypatch.setattr(sys, "executable", str(link))

    with pytest.raises(WorkerLostError, match="Permission denied") as caught:
        await spawn(0, {}, ())

    assert f"let user {os.geteuid()} run {real}, or" in caught.value.hint
