"""End background tasks without swallowing the cancellation of who ends them."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended.

    Args:
        task: The task; its cancellation is expected, any other exception is raised.

    Raises:
        CancelledError: The caller itself was cancelled while it waited.
    """
    task.cancel()
    # asyncio.wait raises CancelledError only for the caller, never for the task.
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
