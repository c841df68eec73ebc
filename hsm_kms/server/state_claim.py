"""Keep the state directory for one server at a time.

Two servers would overwrite each other's last current key and counts of nonces.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from hsm_kms.log import get_logger
from hsm_kms.state_dir.store import StateWriteError

if TYPE_CHECKING:
    from hsm_kms.state_dir.directory import StateDir

# A disk that hangs must not keep the server from listening.
ANSWER_SECONDS: Final = 1.0
_LEAST_SECONDS: Final = 1.0  # a killed server may lose its locks one after the other
_POLL_SECONDS: Final = 0.05  # between two tries for a lock that is taken

_log = get_logger(__name__)


class StateClaim:
    """Hold the lock of a state directory: call `acquire`, and finally `close`."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()

    async def acquire(self, state: StateDir, wait: float) -> None:
        """Take the directory, waiting for another server to leave it.

        A directory that cannot be used is not taken: its problem is told elsewhere,
        and in one that is not trusted another user could hold the lock.

        Args:
            state: The state directory, opened.
            wait: How long another server may take to leave, in seconds.

        Raises:
            StateWriteError: Another server still used it after that time.
        """
        wait = max(wait, _LEAST_SECONDS)
        if not state.writable or await self._took(state):
            return
        _log.info(
            "waiting for another server to leave the state directory",
            state_dir=str(state.path),
            seconds=wait,
        )
        until = asyncio.get_running_loop().time() + wait
        while not await self._took(state):
            if asyncio.get_running_loop().time() >= until:
                raise StateWriteError(
                    f"another hsm-kms server uses the state directory {state.path}",
                    hint="stop it, or give this server a state_dir of its own",
                )
            await asyncio.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Release the directory; a second call does nothing."""
        self._held.close()

    async def _took(self, state: StateDir) -> bool:
        """Return False if another server holds the lock."""

        def lock() -> bool:
            with contextlib.ExitStack() as trial:
                if not trial.enter_context(state.server_lock()):
                    return False
                self._held.push(trial.pop_all())
            return True

        try:
            return await state.background(lock, ANSWER_SECONDS)
        except StateWriteError:
            return True  # there is nothing to wait for
