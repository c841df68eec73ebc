"""End background tasks without swallowing a cancellation of the caller."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended.

    Args:
        task: The task. The cancellation of the task is expected; any other exception
            of the task is raised.

    Raises:
        CancelledError: The caller was cancelled while it waited for the task.
    """
    task.cancel()
    # asyncio.wait raises CancelledError only for the caller, never for the task.
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def outlast(task: asyncio.Future[Any]) -> None:
    """Wait until a task has ended, even if the caller is cancelled meanwhile.

    Args:
        task: The task; it is never cancelled here, and its exception is not raised.

    Raises:
        CancelledError: The caller was cancelled, once or several times, while it
            waited; the task has ended all the same.
    """
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        await outlast(task)  # until the task has ended, whoever cancels again
        raise
