"""Fixtures of the tests of health: a clock that stands, and a node on it."""

from __future__ import annotations

import asyncio
import math

import pytest

from tests.unit.health.health_node import HealthNode


@pytest.fixture
async def clock(monkeypatch):
    """The loop's clock, which stands until the test moves it."""
    loop = asyncio.get_running_loop()
    now_ = [float(math.ceil(loop.time()))]  # whole seconds add up exactly
    monkeypatch.setattr(loop, "time", lambda: now_[0])
    return now_


@pytest.fixture
async def fresh(tmp_path, clock):
    """A node that has not reached its token."""
    return HealthNode(tmp_path / "state", clock)


@pytest.fixture
async def node(fresh):
    """A node whose token is available."""
    return await fresh.well()
