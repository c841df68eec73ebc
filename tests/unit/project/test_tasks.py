"""Test that tasks end when cancelled, and that no cancellation is swallowed."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

import hsm_kms
from hsm_kms.tasks import cancel_and_wait, outlast
from tests.harness.wait import settle

ROOT = Path(hsm_kms.__file__).parent


async def test_ended():
    """A task has ended when cancel_and_wait returns."""
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)

    await cancel_and_wait(task)

    assert task.cancelled()


async def test_failed():
    """An exception that the task raised instead of ending is raised."""

    async def fail():
        raise ValueError("broken")

    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    with pytest.raises(ValueError, match="broken"):
        await cancel_and_wait(task)


async def test_caller_is_cancelled():
    """A caller that is cancelled while the task ends gets CancelledError."""
    go, cancelled = asyncio.Event(), asyncio.Event()

    async def slow():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await go.wait()

    task = asyncio.create_task(slow())
    await asyncio.sleep(0)
    caller = asyncio.create_task(cancel_and_wait(task))
    await cancelled.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go.set()
    await asyncio.wait({task})


async def test_outlast():
    """A caller that is cancelled again and again still waits for the task."""
    go = asyncio.Event()
    task = asyncio.create_task(go.wait())
    caller = asyncio.create_task(outlast(task))
    for _ in range(3):
        await settle()
        caller.cancel()
    await settle()
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert task.result()


def suppresses(node: ast.AST) -> bool:
    """Return True for suppress(CancelledError) and a handler that does not raise."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        given = " ".join(map(ast.unparse, node.args))
        return name == "suppress" and "CancelledError" in given
    if isinstance(node, ast.ExceptHandler) and node.type is not None:
        caught = ast.unparse(node.type).replace("concurrent.futures.", "thread ")
        if "CancelledError" in caught and "thread Cancelled" not in caught:
            return not any(isinstance(each, ast.Raise) for each in ast.walk(node))
    return False


def test_nobody_suppresses():
    """No code in the package suppresses CancelledError."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if suppresses(node)
    ]

    assert [] == found
