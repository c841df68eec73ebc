"""Keep background tasks running, and end them without swallowing a cancellation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

RESTART_SECONDS: Final = 1.0

_log = get_logger(__name__)


async def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run background work, and start it again whenever a bug ends it.

    Args:
        name: Names the work in the log.
        work: Runs until it is cancelled, or returns when it is done.
    """
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - a bug must not end the work
            _log.error("bug in a background task", task=name, exc_info=error)
            await asyncio.sleep(RESTART_SECONDS)
        else:
            return


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


async def complete(work: Coroutine[Any, Any, None]) -> None:
    """Do work to its end, even if the caller is cancelled meanwhile.

    Args:
        work: The work; its exception is raised, unless the caller was cancelled.

    Raises:
        CancelledError: See `outlast`.
    """
    task = asyncio.create_task(work)
    await outlast(task)
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
