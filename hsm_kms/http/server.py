"""Listen for HTTP on a TCP port and on the admin socket.

1. A listener serves at most `MAX_CONNECTIONS` at once. One connection more takes the
   place of the oldest, so that idle connections never keep a probe out.
2. No thread, no task and no buffer is made before a connection has its place.
3. A listener that cannot have its address says so and tries again every
   `RETRY_SECONDS`; nothing else depends on it.
4. The TCP port serves only what everybody on the node may know. Details are on the
   admin socket, whose mode is 0600.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from hsm_kms.http.exchange import Pages, Responder
from hsm_kms.log import get_logger
from hsm_kms.tasks import cancel_and_wait, keep_running

if TYPE_CHECKING:
    import socket

    from hsm_kms.http.address import Address

MAX_CONNECTIONS: Final = 16
RETRY_SECONDS: Final = 5.0
# While places are taken away, at most 200 connections a second are accepted: a flood
# of connections must leave the event loop to the API server.
_CROWDED_SECONDS: Final = 0.005
_NO_DESCRIPTOR_SECONDS: Final = 0.5

_log = get_logger(__name__)


class Listener:
    """Serve pages at one address, and go on trying while the address is taken.

    Args:
        address: Where to listen.
        pages: What is served, by path.
        retry: Seconds between two attempts to listen.

    Attributes:
        address: Where to listen.
        failures: Attempts to listen that failed.
        problem: Why the listener does not listen; None while it does.
        port: TCP port that it has; None if it has none.
    """

    def __init__(
        self, address: Address, pages: Pages, retry: float = RETRY_SECONDS
    ) -> None:
        self.address = address
        self.failures = 0
        self.problem: str | None = "not started"
        self.port: int | None = None
        self._retry = retry
        self._responder = Responder(pages)
        self._listening: socket.socket | None = None
        # In the order of their arrival.
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen, or begin to try."""
        self._try()
        self._task = asyncio.create_task(keep_running("HTTP", self._run))

    async def close(self) -> None:
        """Stop listening, drop all connections and release the address."""
        if self._task is not None:
            await cancel_and_wait(self._task)
        for connection in list(self._connections):
            await _drop(connection)
        if self._listening is not None:
            self._listening.close()
            self.address.release()

    async def _run(self) -> None:
        while self._listening is None:
            await asyncio.sleep(self._retry)
            self._try()
        while True:
            await self._admit(await self._accept(self._listening))

    def _try(self) -> None:
        try:
            listening = self.address.listen(MAX_CONNECTIONS)
        except OSError as error:
            self.failures += 1
            problem = error.strerror or type(error).__name__
            if problem != self.problem:
                _log.error(
                    "cannot listen for HTTP",
                    address=str(self.address),
                    error=problem,
                    hint=f"free the address, or change the section http; it is tried "
                    f"again every {self._retry:g} s",
                )
            self.problem = problem
            return
        self._listening, self.problem = listening, None
        if self.address.kind == "tcp":
            self.port = int(listening.getsockname()[1])
        _log.info("listening for HTTP", address=str(self.address), port=self.port)

    async def _accept(self, listening: socket.socket) -> socket.socket:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError:  # no descriptor is left, or the client has gone
                await asyncio.sleep(_NO_DESCRIPTOR_SECONDS)
            else:
                return connection

    async def _admit(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as unless_served:
            unless_served.callback(connection.close)
            if len(self._connections) >= MAX_CONNECTIONS:
                await _drop(next(iter(self._connections)))
                await asyncio.sleep(_CROWDED_SECONDS)
            unless_served.pop_all()
        # Only this task adds connections, so the place is still free.
        task = asyncio.create_task(self._responder.serve(connection))
        self._connections[task] = connection
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        # Here and not in the task, which is cancelled before it begins at times.
        self._connections.pop(task).close()


async def _drop(connection: asyncio.Task[None]) -> None:
    connection.cancel()
    await asyncio.wait({connection})


class HttpServer:
    """Keep the listeners of a server.

    Attributes:
        listeners: Listeners that were started.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def listen(self, address: Address, pages: Pages) -> None:
        """Serve pages at an address, now or as soon as the address can be had.

        Args:
            address: Where to listen.
            pages: What is served, by path.
        """
        listener = Listener(address, pages)
        self.listeners.append(listener)
        listener.start()

    async def close(self) -> None:
        """Stop listening at all addresses."""
        for listener in self.listeners:
            await listener.close()
