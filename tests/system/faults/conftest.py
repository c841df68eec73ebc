"""Fixtures: a server on the fault shim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.faults.observed import QUICK, ObservedServer

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def make_rig(make_plugin, hsm, shim) -> Callable[..., ObservedServer]:
    """Make servers on the shim, not started yet; sections as for `make_plugin`."""

    def make(token=None, on=hsm, **sections) -> ObservedServer:
        given = {
            "module": str(shim.module),
            "env": {**on.env, **shim.env},
            "workers": 2,
            # A worker that is killed because it starts slowly may lose the token.
            "start_timeout": "20s",
        }
        sections = {"log": {"level": "info"}, **sections}
        plugin = make_plugin(on, token=given | (token or {}), **sections)
        return ObservedServer(plugin=plugin, hsm=on, shim=shim)

    return make


@pytest.fixture
def rig(make_rig) -> ObservedServer:
    """A healthy server on the shim, two workers of four sessions."""
    made = make_rig()
    made.start()
    made.well()
    return made


@pytest.fixture
def quick_rig(make_rig) -> ObservedServer:
    """A healthy server on the shim that soon takes a call for stuck or hung."""
    made = make_rig(token=QUICK)
    made.start()
    made.well()
    return made
