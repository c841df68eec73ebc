"""`serve`: build the parts, start them, drain them; decide nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from hsm_kms import __version__, wiring
from hsm_kms.api.server import build_server
from hsm_kms.monitor import Monitor
from hsm_kms.socket import UnixSocket
from hsm_kms.state import StateDir
from hsm_kms.token.pin import PinGate
from hsm_kms.token.pool import Pool
from hsm_kms.token.workers import Workers
from hsm_kms.wrapping.wrapper import TokenWrapper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from hsm_kms.config_types import Config

DRAIN_SECONDS: Final = 1.5  # for calls under way, of the 3 s that a stop may take

_log = structlog.get_logger(__name__)


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: The configuration.

    Raises:
        SocketError: The KMS socket cannot be taken.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listen = config.listen
    socket = UnixSocket(
        listen.socket,
        mode=listen.mode_bits,
        group=listen.group,
        lock_wait=listen.lock_wait,
    )
    await socket.acquire()
    try:
        await _serve_on(socket, config, stop)
    finally:
        socket.close()


async def _serve_on(socket: UnixSocket, config: Config, stop: asyncio.Event) -> None:
    state = StateDir(config.state_dir).open()
    if state.problem:
        _log.warning("state directory", problem=state.problem)
    monitor = Monitor(
        wiring.key_settings(config),
        state,
        scope=config.scope,
        interval=config.health.interval,
        call_timeout=config.token.call_timeout,
    )
    pool = Pool(
        session_wait=config.token.session_wait,
        call_timeout=config.token.call_timeout,
        on_fault=monitor.fault_seen,
    )
    wrapper = partial(
        TokenWrapper,
        pool,
        monitor.health,
        scope=config.scope,
        patience=config.token.session_wait,
    )
    server = build_server(
        config.apis,
        v2=wrapper(verify=True),
        v1=wrapper(verify=False),
        health=monitor.health,
    )
    # Listening comes first: the API server waits for nobody, and Status says why
    # the token is not there yet.
    socket.bind(server)
    await server.start()
    _log.info("listening", socket=str(config.listen.socket), version=__version__)
    async with _token(config, state, monitor, pool):
        await stop.wait()
        _log.info("stopping")
        await server.stop(DRAIN_SECONDS)
    _log.info("stopped")


@contextlib.asynccontextmanager
async def _token(
    config: Config, state: StateDir, monitor: Monitor, pool: Pool
) -> AsyncIterator[None]:
    """The token's workers and their watcher, running."""
    workers = Workers(
        wiring.worker_settings(config),
        pool=pool,
        gate=PinGate(wiring.pin_source(config), state),
        qualify=monitor.qualify,
        on_change=monitor.worker_changed,
    )
    monitor.attach(workers)
    workers.start()
    watching = asyncio.create_task(monitor.run())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        pool.close()
        await workers.close()
