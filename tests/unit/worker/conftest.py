"""Workers on a token of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.one_worker import gate, one_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from hsm_kms.token.process import Worker
    from tests.harness.softhsm import SoftHsm

    Make = Callable[..., AbstractAsyncContextManager[Worker]]


@pytest.fixture
def make(hsm: SoftHsm, pin_file: Path, directory: Path) -> Make:
    """Start workers on a token with one KEK, logged in, with one session."""
    login = gate(pin_file, directory)

    def make(
        env: dict[str, str] | None = None, **changes: Any
    ) -> AbstractAsyncContextManager[Worker]:
        return one_worker(hsm.env | (env or {}), login, **changes)

    return make


@pytest.fixture
async def worker(make: Make) -> AsyncIterator[Worker]:
    """One of them."""
    async with make() as made:
        yield made
