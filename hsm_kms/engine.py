"""Everything that stands behind the services, for one configuration.

A reload makes a new engine and drops the old one; the services do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from hsm_kms import wiring
from hsm_kms.discovery import Discovery
from hsm_kms.keyholder import KeyHolder
from hsm_kms.monitor import Monitor
from hsm_kms.token.pin import PinGate
from hsm_kms.token.pool import Pool
from hsm_kms.token.workers import Workers
from hsm_kms.wrapping.wrapper import TokenWrapper

if TYPE_CHECKING:
    from hsm_kms.config_types import Config
    from hsm_kms.health import Health
    from hsm_kms.keyring import Keyring
    from hsm_kms.state import StateDir
    from hsm_kms.token.counts import Counts


class Keys:
    """What a wrapper knows of keys.

    Args:
        monitor: Looks for them.
        announced: Encrypt under the key that Status gave last, as v2 must.
    """

    def __init__(self, monitor: Monitor, *, announced: bool) -> None:
        self._monitor = monitor
        self._announced = announced

    async def ring_soon(self, until: float) -> Keyring:
        """See `Health.ring_soon`."""
        return await self._monitor.health.ring_soon(until, announced=self._announced)

    async def ring_after_look(self, until: float) -> Keyring:
        """The keyring, after a look for keys that have just come."""
        await self._monitor.look_again(until)
        return await self.ring_soon(until)


class Engine:
    """Pool, workers, monitor and wrappers.

    Args:
        config: The configuration.
        state: The state directory.
        counts: Running totals, kept over reloads.

    Attributes:
        config: The configuration.
        pool: The sessions.
        workers: The worker processes.
        gate: The PIN.
        v2: What seals and opens for v2; it reads back what it wrapped.
        v1: The same for v1.
    """

    def __init__(self, config: Config, state: StateDir, counts: Counts) -> None:
        self.config = config
        settings = wiring.key_settings(config)
        self._monitor = Monitor(
            Discovery(
                settings,
                state,
                seconds=config.token.call_timeout,
                start_seconds=config.token.start_timeout,
                freeze=True,
            ),
            KeyHolder(settings, state),
            scope=config.scope,
            interval=min(config.health.interval, config.keys.discover),
            call_timeout=config.token.call_timeout,
            start_timeout=config.token.start_timeout,
        )
        self.pool = Pool(
            session_wait=config.token.session_wait,
            call_timeout=config.token.call_timeout,
            on_fault=self._monitor.fault_seen,
            counts=counts,
        )
        self.gate = PinGate(wiring.pin_source(config), state)
        self.workers = Workers(
            wiring.worker_settings(config),
            pool=self.pool,
            gate=self.gate,
            qualify=self._monitor.qualify,
            on_change=self._monitor.worker_changed,
            counts=counts,
        )
        wrapper = partial(
            TokenWrapper,
            self.pool,
            scope=config.scope,
            patience=config.token.session_wait,
        )
        self.v2 = wrapper(keys=Keys(self._monitor, announced=True), verify=True)
        self.v1 = wrapper(keys=Keys(self._monitor, announced=False), verify=False)
        self._watching: asyncio.Task[None] | None = None

    @property
    def keys(self) -> KeyHolder:
        """What was learnt about its keys."""
        return self._monitor.holder

    @property
    def health(self) -> Health:
        """What was learnt about the token."""
        return self._monitor.health

    def start(self) -> None:
        """Start workers and monitor in the background."""
        self._monitor.attach(self.workers, self._well)
        self.workers.start()
        self._watching = asyncio.create_task(self._monitor.run())

    def _well(self) -> None:
        """A canary has passed."""
        self.pool.breaker.close()
        self.workers.canary_passed()

    async def close(self) -> None:
        """Fail what waits, let calls under way end with their workers, stop all."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        self.pool.close()
        await self.workers.close()
