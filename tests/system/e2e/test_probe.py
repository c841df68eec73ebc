"""`hsm-kms probe` with a plugin made with Kubernetes' own library, in Go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.harness.command_line import run
from tests.system.e2e.processes import Child, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120, func_only=True)]


@pytest.fixture
def socket(loader: Path, new_folder: Callable[[], Path]) -> Iterator[Path]:
    """Serve the least that a plugin for KMS v2 does."""
    folder = new_folder()
    path = folder / "kms.sock"
    child = Child([loader, "serve", path], log=folder / "log")
    try:
        wait_for("socket", path.exists, timeout=30)
        yield path
    finally:
        child.stop()


def test_another_plugin(socket):
    """A plugin of somebody else passes, with its key_id and its annotations."""
    ended = run("probe", "--socket", socket, "-o", "json")
    report = json.loads(ended.stdout)

    assert 0 == ended.returncode, report
    assert ("v2", "reference-key") == (report["api"], report["key_id"])
    assert {"ok"} == {each["outcome"] for each in report["checks"]}
    (said,) = (each["text"] for each in report["checks"] if each["id"] == "encrypt")
    assert said.endswith("annotations version.reference.example")
