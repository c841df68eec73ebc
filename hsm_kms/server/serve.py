"""`serve`: build the parts; own start, reload and drain; decide nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any, Final

from hsm_kms import __version__
from hsm_kms.api.server import build_server
from hsm_kms.http.metrics import Metrics
from hsm_kms.http.pages import admin_pages, public_pages, sparing
from hsm_kms.http.server import HttpServer, TcpAddress, UnixAddress
from hsm_kms.log import get_logger
from hsm_kms.server import writable
from hsm_kms.server.engine import Lasting
from hsm_kms.server.kms_socket import UnixSocket
from hsm_kms.server.orphans import reap_orphans
from hsm_kms.server.reload import ConfigFile, Reload
from hsm_kms.server.snapshot import snapshot, status_of
from hsm_kms.server.takeover import DRAIN_SECONDS, InForce
from hsm_kms.state_dir.directory import StateDir, StateWriteError
from hsm_kms.tasks import cancel_and_wait
from hsm_kms.wrapping.nonce_budget import NonceBudget

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.config.schema import Config

_OPEN_SECONDS: Final = 1.0  # a disk that hangs must not keep the server from listening
_SAVE_SECONDS: Final = 1.0  # nor from stopping

_log = get_logger(__name__)


async def serve(config: Config, path: Path) -> None:
    """Serve until SIGTERM or SIGINT; read the configuration again on SIGHUP.

    Args:
        config: The configuration.
        path: The file it came from.

    Raises:
        SocketError: The KMS socket cannot be taken.
    """
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    writable.warn(config, path)
    listen = config.listen
    socket = UnixSocket(
        listen.socket,
        mode=listen.mode_bits,
        group=listen.group,
        lock_wait=listen.lock_wait,
    )
    await socket.acquire()
    try:
        server = Server(config, path, await _open_state(config.state_dir))
        await server.run(socket, stop, again)
    finally:
        socket.close()


class Server:
    """Run the server.

    Args:
        config: The configuration.
        path: The file of the configuration.
        state: The state directory.
    """

    def __init__(self, config: Config, path: Path, state: StateDir) -> None:
        file = ConfigFile(path)
        self._lasting = Lasting(state=state, budget=NonceBudget(state))
        self._in_force = InForce(config, self._lasting)
        self._reload = Reload(file, self._in_force)
        self._http = HttpServer()
        self._metrics = Metrics(
            lambda: snapshot(self._in_force.engine, self._lasting, self._http)
        )
        self._grpc = build_server(
            config.apis,
            v2=self._in_force.v2,
            v1=self._in_force.v1,
            health=self._in_force,
            observe=self._metrics.request,
        )

    async def run(
        self, socket: UnixSocket, stop: asyncio.Event, again: asyncio.Event
    ) -> None:
        """Serve until `stop`; read the configuration on `again`."""
        # Listening comes first: the API server waits for nobody, and Status says
        # why the token is not there yet.
        socket.bind(self._grpc)
        await self._grpc.start()
        config = self._in_force.engine.config
        _log.info("listening", socket=str(config.listen.socket), version=__version__)
        self._in_force.engine.start()
        self._listen_http()
        reloading = asyncio.create_task(self._reload.run(again))
        reaping = asyncio.create_task(reap_orphans())
        try:
            await stop.wait()
            _log.info("stopping")
            await self._grpc.stop(DRAIN_SECONDS)
        finally:
            await cancel_and_wait(reloading)
            await cancel_and_wait(reaping)
            await self._in_force.engine.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SAVE_SECONDS):
                    await self._lasting.budget.close()
            await self._http.close()
        _log.info("stopped")

    def _listen_http(self) -> None:
        http = self._in_force.engine.config.http
        public = public_pages(self._in_force.look, self._metrics)
        if http.address is not None:
            self._http.listen(TcpAddress(*http.address), sparing(public))
        if http.admin_socket is not None:
            pages = admin_pages(public, self._status)
            self._http.listen(UnixAddress(http.admin_socket), pages)

    def _status(self) -> dict[str, Any]:
        return status_of(self._in_force.engine, self._lasting, self._http)


async def _open_state(path: Path) -> StateDir:
    """Open the state directory; whoever needs it tries again if that takes long."""
    state = StateDir(path)
    try:
        await state.background(state.open, _OPEN_SECONDS)
    except StateWriteError as error:
        state.problem = error.sentence
    if state.problem:
        _log.warning("state directory problem", error=state.problem)
    return state
