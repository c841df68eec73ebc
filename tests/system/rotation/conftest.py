"""Fixtures: nodes on one token, each with a clock of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.rotation.nodes import RotationNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.softhsm import SoftHsm


@pytest.fixture
def make_node(
    directory: Path, hsm: SoftHsm, pin_file: Path
) -> Iterator[Callable[..., RotationNode]]:
    """Make nodes on one shared token, not started yet; all are stopped at the end."""
    made: list[RotationNode] = []

    def make(
        *, skew: float = 0.0, on: SoftHsm = hsm, token=None, **sections
    ) -> RotationNode:
        own = directory / f"n{len(made)}"
        own.mkdir(mode=0o700)
        sections = {
            "health": {"interval": "500ms"},
            "log": {"level": "info"},
            **sections,
        }
        given = {"shared": True, "workers": 2, "sessions_per_worker": 2}
        node = RotationNode(
            own, on, pin_file, skew=skew, token=given | (token or {}), **sections
        )
        made.append(node)
        return node

    yield make
    for node in made:
        node.close()


@pytest.fixture
def make_nodes(make_node) -> Callable[..., list[RotationNode]]:
    """Make nodes whose clocks are off by so much; start them, wait until all is ok."""

    def make(*skews: float, **sections) -> list[RotationNode]:
        nodes = [make_node(skew=skew, **sections) for skew in skews]
        for node in nodes:
            node.start()
        for node in nodes:
            node.well()
        return nodes

    return make
