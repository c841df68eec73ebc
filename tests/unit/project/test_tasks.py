"""Test that tasks go on after a bug, end if cancelled, and swallow no cancellation."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import hsm_kms
from hsm_kms import tasks
from hsm_kms.tasks import cancel_and_wait, keep_running, outlast
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


async def test_keep_running(monkeypatch):
    """Work that a bug ends is logged and started again; work that is done is not."""
    monkeypatch.setattr(tasks, "RESTART_SECONDS", 0)
    outcomes = [ZeroDivisionError(), KeyError("k"), None]

    async def work():
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    with capture_logs() as logs:
        await keep_running("a test", work)

    assert [] == outcomes
    assert [("bug in a background task", "error", "a test")] * 2 == [
        (log["event"], log["log_level"], log["task"]) for log in logs
    ]


def runs_unwatched(node: ast.AST) -> bool:
    """Return True for create_task(x.run()): nobody would notice its end by a bug."""
    if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith(
        ("create_task", "ensure_future")
    ):
        return False
    return ast.unparse(node.args[0]).partition("(")[0].endswith(("run", "_run"))


def places(is_wrong):
    """Return where in the package a node of the syntax tree is wrong."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if is_wrong(node)
    ]


def test_background_tasks_are_kept_running():
    """No background task is started without `keep_running`."""
    assert [] == places(runs_unwatched)


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
    assert [] == places(suppresses)
