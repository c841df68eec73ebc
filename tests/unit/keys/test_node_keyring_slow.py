"""A switch while the disk of the state directory hangs."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from hsm_kms.keys import key_memory
from tests.harness.log_capture import captured
from tests.harness.wait import settle, until
from tests.unit.keys.key_samples import A, B
from tests.unit.keys.keyring_node import FIRST, NEXT, KeyringNode


@pytest.fixture
async def node(tmp_path):
    """A node whose second key is due."""
    made = KeyringNode(tmp_path / "state")
    await made.reads(FIRST, NEXT)
    return made.after(10)


@contextlib.asynccontextmanager
async def hanging(node):
    """Let the disk of a node hang, and yield what lets it go on."""
    go_on = threading.Event()
    blocked = asyncio.create_task(node.state.background(go_on.wait))
    await settle()
    try:
        yield go_on
    finally:
        go_on.set()
        await blocked


async def test_saved_first(node):
    """Until the new key is saved the old one is current."""
    async with hanging(node) as go_on:
        reading = asyncio.create_task(node.reads(FIRST, NEXT))
        await settle()
        assert (A, A) == (node.current, node.keyring.key_id)
        assert (A, []) == node.kept
        go_on.set()
        await reading

    assert (B, (B, [A])) == (node.current, node.kept)


async def test_bounded(node, monkeypatch):
    """A disk that does not answer delays the switch for a while, and it is logged."""
    monkeypatch.setattr(key_memory, "SAVE_SECONDS", 0.05)
    with captured() as log:
        async with hanging(node):
            await node.reads(FIRST, NEXT)
            assert (B, (A, [])) == (node.current, node.kept)
            await node.reads(FIRST, NEXT)

    (warning,) = (each for each in log.events() if each["level"] == "warning")
    assert "the current key is not saved" == warning["event"]
    assert "does not answer" in warning["error"]
    await until(lambda: node.kept == (B, [A]))


async def test_frozen_meanwhile(node):
    """If another engine takes over meanwhile, this one does not switch any more."""
    async with hanging(node) as go_on:
        reading = asyncio.create_task(node.reads(FIRST, NEXT))
        await settle()
        node.keyring.freeze()
        go_on.set()
        await reading

    assert (A, A) == (node.current, node.keyring.key_id)


async def test_one_after_the_other(node):
    """Two inspections at once decide one after the other, and switch once."""
    async with hanging(node) as go_on:
        both = [asyncio.create_task(node.reads(FIRST, NEXT)) for _ in range(2)]
        await settle()
        go_on.set()
        await asyncio.gather(*both)

    assert (B, (B, [A])) == (node.current, node.kept)
