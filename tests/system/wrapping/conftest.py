"""Nodes in the process of a test, on a token whose only key is a day old."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from hsm_kms.clock import now
from hsm_kms.keys.key_id import make_cka_id
from tests.harness.token_keys import make_key
from tests.system.wrapping.wrapping_rig import Maker, nodes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path
    from typing import Any

    from tests.harness.shim.driver import Shim
    from tests.harness.softhsm import SoftHsm


@pytest.fixture(scope="session")
def aged_template(session_directory: Path, token_template: SoftHsm) -> SoftHsm:
    """A token whose only key is a day old: younger ones may be made in the past."""
    hsm = token_template.copy(session_directory / "aged")
    make_key(hsm, make_cka_id(int(now()) - 86_400))
    return hsm


@pytest.fixture
def aged_hsm(directory: Path, aged_template: SoftHsm) -> SoftHsm:
    """A token of this test's own, whose only key is a day old."""
    return aged_template.copy(directory / "hsm")


@pytest.fixture
def logs() -> Iterator[Any]:
    """Events of the log."""
    with capture_logs() as events:
        yield events


@pytest.fixture
async def make_node(
    make_plugin: Callable[..., Any], aged_hsm: SoftHsm, shim: Shim, logs: Any
) -> AsyncIterator[Any]:
    """Make nodes on one token."""
    async with nodes(make_plugin, aged_hsm, shim) as make:
        yield make


@pytest.fixture
def maker(aged_hsm: SoftHsm, pin_file: Path, directory: Path) -> Maker:
    """Makes keys on that token."""
    return Maker(aged_hsm, pin_file, directory)
