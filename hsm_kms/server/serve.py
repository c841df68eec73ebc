"""`serve`: build the parts; own start, reload and drain; decide nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Final

from hsm_kms import __version__, log
from hsm_kms.api.server import build_server
from hsm_kms.http.metrics import Metrics
from hsm_kms.http.pages import admin_pages, public_pages
from hsm_kms.http.server import HttpServer
from hsm_kms.log import get_logger
from hsm_kms.server import reload
from hsm_kms.server.engine import Engine, Lasting
from hsm_kms.server.kms_socket import UnixSocket
from hsm_kms.server.snapshot import snapshot, status_of
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.tasks import cancel_and_wait
from hsm_kms.wrapping.nonce_budget import NonceBudget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hsm_kms.config.schema import Config
    from hsm_kms.health.state import HealthState
    from hsm_kms.wrapping.wrapper import DekWrapper, Sealed, Unsealed

DRAIN_SECONDS: Final = 1.5  # for calls under way, of the 3 s that a stop may take

ANNOUNCE_SECONDS: Final = 75.0  # the API server asks at least every 60 s

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
    listen = config.listen
    socket = UnixSocket(
        listen.socket,
        mode=listen.mode_bits,
        group=listen.group,
        lock_wait=listen.lock_wait,
    )
    await socket.acquire()
    try:
        server = Server(config, path)
        await server.run(socket, stop, again)
    finally:
        socket.close()


class Server:
    """The running server.

    Args:
        config: The configuration.
        path: The file it came from.
    """

    def __init__(self, config: Config, path: Path) -> None:
        self._file = reload.ConfigFile(path)
        state = StateDir(config.state_dir).open()
        if state.problem:
            _log.warning("state directory", problem=state.problem)
        self._lasting = Lasting(state=state, budget=NonceBudget(state))
        self._engine = self._announced = Engine(config, self._lasting)
        self._announcing = asyncio.Event()
        self._metrics = Metrics(lambda: snapshot(self._engine, self._lasting))
        self._http = HttpServer()
        self._grpc = build_server(
            config.apis,
            # v2 encrypts with the key that Status gave last; v1 announces nothing.
            v2=_Current(
                seal=lambda: self._announced.v2, unseal=lambda: self._engine.v2
            ),
            v1=_Current(seal=lambda: self._engine.v1, unseal=lambda: self._engine.v1),
            health=self,
            observe=self._metrics.request,
        )

    def announce(self) -> HealthState:
        """See `Health.announce`; v2 encrypts with the engine that announced last."""
        self._announced = self._engine
        self._announcing.set()
        return self._engine.health.announce()

    def look(self) -> HealthState:
        """See `Health.look`."""
        return self._engine.health.look()

    async def run(
        self, socket: UnixSocket, stop: asyncio.Event, again: asyncio.Event
    ) -> None:
        """Serve until `stop`; read the configuration on `again`."""
        # Listening comes first: the API server waits for nobody, and Status says
        # why the token is not there yet.
        socket.bind(self._grpc)
        await self._grpc.start()
        config = self._engine.config
        _log.info("listening", socket=str(config.listen.socket), version=__version__)
        self._engine.start()
        self._listen_http()
        reloading = asyncio.create_task(self._reload(again))
        try:
            await stop.wait()
            _log.info("stopping")
            await self._grpc.stop(DRAIN_SECONDS)
        finally:
            await cancel_and_wait(reloading)
            await self._engine.close()
            await self._lasting.budget.close()
            await asyncio.to_thread(self._http.close)
        _log.info("stopped")

    def _listen_http(self) -> None:
        http = self._engine.config.http
        if http.address is not None:
            host, port = http.address
            pages = public_pages(self.look, self._metrics)
            got = self._http.listen_tcp(host, port, pages)
            _log.info("probes and metrics", host=host, port=got)
        if http.admin_socket is not None:
            pages = admin_pages(lambda: status_of(self._engine, self._lasting))
            self._http.listen_unix(http.admin_socket, pages)

    async def _reload(self, again: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(reload.WATCH_SECONDS):
                    await again.wait()
            if again.is_set() or self._file.changed():
                again.clear()
                try:
                    new = self._file.read(self._engine.config)
                    if new is not None:
                        await self._apply(new)
                except Exception as error:  # noqa: BLE001 - a bug must not end reloads
                    _log.error("bug during a reload", exc_info=error)

    async def _apply(self, config: Config) -> None:
        """Go on with another configuration."""
        effect, _ = reload.plan(self._engine.config, config)
        if effect is reload.Change.ADJUST:
            self._engine.adjust(config)
            self._now_in_force(config)
        else:
            await self._take_over(config)

    def _now_in_force(self, config: Config) -> None:
        log.configure(config.log.level, config.log.format)
        _log.info("configuration applied")

    async def _take_over(self, config: Config) -> None:
        """Replace the engine, unless the new one would serve worse than the old one."""
        old, new = self._engine, Engine(config, self._lasting)
        old.keys.freeze()  # the new one begins with what is remembered now
        better = False
        try:
            better = await self._is_better(old, new)
        finally:  # also after a bug, or when the server stops meanwhile
            if not better:
                old.keys.unfreeze()
                await new.close()
        if not better:
            return
        self._announcing.clear()
        self._engine = new
        self._now_in_force(config)
        try:
            await self._let_go(old, new)
        finally:
            self._announced = new
            await old.close()

    async def _is_better(self, old: Engine, new: Engine) -> bool:
        """Start the new engine; return True if it should replace the old one."""
        new.start()
        seconds = new.config.token.start_timeout
        trouble = await reload.wait_until_well(new, seconds)
        serves = old.health.look().state == "ok" or old.in_software
        if trouble is None or not serves:
            return True
        _log.error(
            "configuration rejected: the token would become unavailable",
            error=trouble.sentence,
        )
        return False

    async def _let_go(self, old: Engine, new: Engine) -> None:
        """Wait for the calls on the old engine, and for Status to name the new key."""
        if old.keys.announced == new.keys.key_id:
            new.keys.announce(new.keys.key_id)
        elif old.keys.announced:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANNOUNCE_SECONDS):
                    await self._announcing.wait()
        await asyncio.sleep(DRAIN_SECONDS)


class _Current:
    """What a service holds over reloads: each request asks which wrapper is current.

    Args:
        seal: The wrapper to encrypt with.
        unseal: The wrapper to decrypt with.
    """

    def __init__(
        self, *, seal: Callable[[], DekWrapper], unseal: Callable[[], DekWrapper]
    ) -> None:
        self._seal = seal
        self._unseal = unseal

    async def wrap(self, plaintext: bytes, *, deadline: float | None) -> Sealed:
        """See `Wrapper.wrap`."""
        return await self._seal().wrap(plaintext, deadline=deadline)

    async def unwrap(
        self, ciphertext: bytes, *, key_id: str | None, deadline: float | None
    ) -> Unsealed:
        """See `Wrapper.unwrap`."""
        return await self._unseal().unwrap(ciphertext, key_id=key_id, deadline=deadline)
