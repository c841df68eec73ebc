"""Fixtures: a shim that does nothing yet, and programs that run on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.shim.running import Client

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def make_client(shim, hsm) -> Iterator:
    """Start clients; all are gone at the end."""
    made = []

    def make():
        made.append(Client(shim, hsm))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def client(make_client) -> Client:
    """A client that has not yet started its module."""
    return make_client()
