"""Servers of one token worker: that is all these tests need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.conformance.inside import of_one_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.plugin import Plugin


@pytest.fixture
def make_plugin(make_plugin: Callable[..., Plugin]) -> Callable[..., Plugin]:
    """Make servers of one token worker, not started; all are stopped at the end."""
    return of_one_worker(make_plugin)
