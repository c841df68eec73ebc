"""Build the server; own its signals and the order of start and stop; decide nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from hsm_kms import __version__, log
from hsm_kms.api.server import build_server
from hsm_kms.audit.events import Server as ServerEvent
from hsm_kms.audit.stream import AuditStream
from hsm_kms.errors import ConfigError
from hsm_kms.http.address import TcpAddress, UnixAddress
from hsm_kms.http.metrics import Metrics
from hsm_kms.http.pages import admin_pages, public_pages, sparing
from hsm_kms.http.requests import RequestCounts
from hsm_kms.http.server import HttpServer
from hsm_kms.keys.key_audit import KeyAudit
from hsm_kms.log import get_logger
from hsm_kms.repeats import log_all_counts
from hsm_kms.server import mounts, writable
from hsm_kms.server.clients import Clients
from hsm_kms.server.engine import Lasting
from hsm_kms.server.kms_socket import UnixSocket
from hsm_kms.server.orphans import reap_orphans
from hsm_kms.server.reload import Reload
from hsm_kms.server.snapshot import snapshot, status_of
from hsm_kms.server.state_claim import ANSWER_SECONDS, StateClaim
from hsm_kms.server.systemd import Systemd, status_text
from hsm_kms.server.takeover import DRAIN_SECONDS, InForce
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.state_dir.store import StateWriteError
from hsm_kms.tasks import cancel_and_wait, keep_running
from hsm_kms.wrapping.nonce_budget import NonceBudget

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from hsm_kms.config.schema import Config
    from hsm_kms.http.values import Snapshot
    from hsm_kms.server.config_file import ConfigFile

_SAVE_SECONDS: Final = 1.0  # a disk that hangs must not keep the server from stopping

_log = get_logger(__name__)


async def serve(file: ConfigFile, config: Config) -> signal.Signals | None:
    """Serve until SIGTERM or SIGINT; read the configuration again on SIGHUP.

    Args:
        file: The configuration file.
        config: What was read from it.

    Returns:
        The first signal that stopped the server; None if it stopped by itself.

    Raises:
        SocketError: The KMS socket cannot be taken.
        StateWriteError: Another server uses the state directory.
    """
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    stopped_by: list[signal.Signals] = []

    def stop_by(number: signal.Signals) -> None:
        stopped_by.append(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_by, number)
    audit = AuditStream(config.audit)

    def read_again() -> None:
        again.set()
        audit.reopen()

    loop.add_signal_handler(signal.SIGHUP, read_again)
    writable.warn(config, file.path)
    mounts.warn(config, file.path)
    listen = config.listen
    socket = UnixSocket(
        listen.socket,
        mode=listen.mode_bits,
        group=listen.group,
        lock_wait=listen.lock_wait,
    )
    claim = StateClaim()
    try:
        if await _unless(stop, socket.acquire()):
            config = _latest(file, config)
            audit.adjust(config.audit)
            state = await _open_state(config.state_dir)
            if await _unless(stop, claim.acquire(state, listen.lock_wait)):
                clients = Clients(socket.bound_to, audit)
                server = Server(file, config, state, audit=audit, clients=clients)
                await server.run(socket, stop, again)
    finally:
        claim.close()  # before the socket, for which this server's successor waits
        socket.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SAVE_SECONDS):
                await audit.close()
    return stopped_by[0] if stopped_by else None


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Do some work, or return False if `stop` is set before it is done."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        await cancel_and_wait(stopping)
        if not working.done():
            await cancel_and_wait(working)


def _latest(file: ConfigFile, config: Config) -> Config:
    """Return the configuration as the file is now, after a wait for the socket.

    A file that has become invalid, or wants another socket, is left to the first
    reload, which says so.
    """
    if not file.changed():
        return config
    try:
        latest = file.load()
    except ConfigError:
        return config
    if latest.listen != config.listen:
        return config
    log.configure(latest.log.level, latest.log.format)
    return latest


class Server:
    """Build the parts of a server, start and stop them in order.

    Args:
        file: The configuration file.
        config: The configuration to begin with.
        state: The state directory.
        audit: Records events.
        clients: Records requests, and who may have sent them.
    """

    def __init__(
        self,
        file: ConfigFile,
        config: Config,
        state: StateDir,
        *,
        audit: AuditStream,
        clients: Clients,
    ) -> None:
        self._file = file
        self._clients = clients
        self._audit = audit
        self._lasting = Lasting(
            state=state,
            budget=NonceBudget(state),
            audit=audit,
            key_audit=KeyAudit(audit),
        )
        self._in_force = InForce(config, self._lasting)
        self._systemd = Systemd.from_environment()
        self._reload = Reload(file, self._in_force, self._systemd, audit)
        self._http = HttpServer()
        apis = (name for name, api in config.apis if api.enabled)
        self._requests = RequestCounts(*apis)
        self._metrics = Metrics(self._requests, self._snapshot)
        self._grpc = build_server(
            config.apis,
            v2=self._in_force.v2,
            v1=self._in_force.v1,
            health=self._in_force,
            observe=self._requests.add,
            audit=clients,
        )

    async def run(
        self, socket: UnixSocket, stop: asyncio.Event, again: asyncio.Event
    ) -> None:
        """Serve until the end.

        Args:
            socket: The KMS socket, acquired.
            stop: Set to end.
            again: Set to have the configuration file read again.
        """
        # Listening comes first: the API server waits for nobody, and Status says
        # why the token is not there yet.
        socket.bind(self._grpc)
        await self._grpc.start()
        config = self._in_force.config
        self._record("started")
        _log.info("listening", socket=str(config.listen.socket), version=__version__)
        self._systemd.ready()
        self._in_force.engine.start()
        self._listen_http()
        reload = partial(self._reload.run, again)
        reloading = asyncio.create_task(keep_running("reload", reload))
        reaping = asyncio.create_task(keep_running("reaper", reap_orphans))
        watching = asyncio.create_task(keep_running("clients", self._clients.run))
        telling = asyncio.create_task(keep_running("systemd", self._tell_systemd))
        try:
            await stop.wait()
            _log.info("stopping")
            self._systemd.stopping()
            reloading.cancel()  # its trial ends while calls under way finish
            await self._grpc.stop(DRAIN_SECONDS)
        finally:
            await cancel_and_wait(reloading)
            await cancel_and_wait(reaping)
            await cancel_and_wait(watching)
            await self._in_force.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SAVE_SECONDS):
                    await self._lasting.budget.close()
            await self._http.close()
            await cancel_and_wait(telling)  # until here the watchdog is pinged
        self._record("stopped")
        log_all_counts()
        _log.info("stopped")

    def _record(self, state: Literal["started", "stopped"]) -> None:
        self._audit.record(
            ServerEvent(
                state=state,
                version=__version__,
                config=str(self._file.path),
                user=os.geteuid(),
            )
        )

    def _listen_http(self) -> None:
        http = self._in_force.config.http
        public = public_pages(self._in_force.look, self._metrics)
        if http.address is not None:
            self._http.listen(TcpAddress(*http.address), sparing(public))
        if http.admin_socket is not None:
            pages = admin_pages(public, self._status)
            self._http.listen(UnixAddress(http.admin_socket), pages)

    async def _tell_systemd(self) -> None:
        await self._systemd.run(self._status_line)

    def _status_line(self) -> str:
        in_force = self._reload.rejected is None
        return status_text(self._in_force.look(), in_force=in_force)

    def _snapshot(self) -> Snapshot:
        return snapshot(
            self._in_force, self._lasting, self._http, self._reload, self._audit.report
        )

    def _status(self) -> dict[str, Any]:
        parts = self._in_force, self._lasting, self._http, self._reload
        return status_of(*parts, self._requests, self._audit.report)


async def _open_state(path: Path) -> StateDir:
    """Open the state directory; whoever needs it tries again if that takes long."""
    state = StateDir(path)
    try:
        await state.background(state.open, ANSWER_SECONDS)
    except StateWriteError as error:
        state.failure = error
    if state.problem:
        _log.warning("state directory problem", error=state.problem)
    return state
