"""The metrics of a real API server are those that alerts and dashboard expect."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from hsm_kms.log import key_id_hash
from tests.system.alerts.api_servers import PAGE
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import running_world

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

SAMPLE = re.compile(r"^(apiserver_envelope_\w+)(?:\{([^}]*)\})? ", re.MULTILINE)


def labels(page: str) -> dict[str, set[str]]:
    """Return the names of the labels of each metric on a page."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, pairs in SAMPLE.findall(page):
        found[name] |= set(re.findall(r'(\w+)="', pairs))
    return dict(found)


def test_metrics_of_an_api_server(
    binaries: Binaries, new_folder: Callable[[], Path]
) -> None:
    """The recorded page has names and labels of a real one, which hashes as hsm-kms."""
    with running_world(binaries, new_folder()) as world:
        world.api.start(world.encryption("v2"))
        world.create("seen", "in metrics")
        world.read("seen")

        def page() -> str:
            return world.api.get("/metrics")[1].decode()

        wait_for("metrics", lambda: labels(page()) == labels(PAGE), timeout=60)
        hashes = set(re.findall(r'[{,]key_id_hash="([^"]+)"', page()))

        assert {key_id_hash(world.plugin.status().key_id)} == hashes
