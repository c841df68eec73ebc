"""Leave a running server its sessions, and see whether it stays well."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from hsm_kms.cli.streams import tell
from hsm_kms.errors import HsmKmsError
from hsm_kms.http.client import read_status
from hsm_kms.server.settings import sessions_needed

if TYPE_CHECKING:
    from hsm_kms.cli.bench.load import Limits
    from hsm_kms.config.schema import Config
    from hsm_kms.token.process import Worker


def within_the_token(config: Config, worker: Worker, limits: Limits) -> Limits:
    """Return limits that leave the server its sessions, if the token reports a limit.

    Args:
        config: The configuration.
        worker: A worker that has chosen the token.
        limits: What was asked for.

    Raises:
        HsmKmsError: The server may need all sessions that the token grants.
    """
    started = worker.started
    token = started.token if started else None
    locking = started is None or started.os_locking
    most = limits.sessions
    if not locking:
        tell("the module does not support locking: measuring with one session")
        most = 1
    if token is not None and token.max_sessions is not None:
        each, workers = sessions_needed(config, os_locking=locking)
        left = token.max_sessions - each * workers - 1
        if left < 1:
            raise HsmKmsError(
                f"the token grants {token.max_sessions} sessions, and the server can "
                f"need {each * workers} of them",
                hint="lower token.workers or token.sessions_per_worker",
            )
        if left < most:
            tell(f"the token has {left} sessions to spare: opening no more")
            most = left
    return replace(limits, sessions=most)


class Look:
    """Ask the server of this node whether it is still well.

    Args:
        config: Names the admin socket.
    """

    def __init__(self, config: Config) -> None:
        self._socket = config.http.admin_socket
        self._runs = False

    async def begin(self) -> None:
        """Find out if a server runs.

        Raises:
            HsmKmsError: It runs, and is not well.
        """
        state = await self._state()
        self._runs = state is not None
        if self._runs and state != "ok":
            raise HsmKmsError(
                f"the server of this node is {state}",
                hint="run `hsm-kms status`; measure the token when the server is ok",
            )

    async def again(self) -> None:
        """Ask once more.

        Raises:
            HsmKmsError: The server is not well any more.
        """
        if self._runs and (state := await self._state()) != "ok":
            raise HsmKmsError(
                f"the server of this node is {state or 'silent'} now",
                hint="run `hsm-kms status`, and measure with fewer --sessions and less "
                "--rate",
            )

    async def _state(self) -> str | None:
        if self._socket is None:
            return None
        status = await asyncio.to_thread(read_status, self._socket)
        return None if status is None else str(status.get("state"))
