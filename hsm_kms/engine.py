"""Everything that stands behind the services, for one configuration.

A reload makes a new engine and drops the old one; the services do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

from hsm_kms import wiring
from hsm_kms.monitor import Monitor
from hsm_kms.token.pin import PinGate
from hsm_kms.token.pool import Pool
from hsm_kms.token.workers import Workers
from hsm_kms.wrapping.wrapper import TokenWrapper

if TYPE_CHECKING:
    from hsm_kms.config_types import Config
    from hsm_kms.health import Health
    from hsm_kms.state import StateDir
    from hsm_kms.token.counts import Counts


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
        self._monitor = Monitor(
            wiring.key_settings(config),
            state,
            scope=config.scope,
            interval=config.health.interval,
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
            self.health,
            scope=config.scope,
            patience=config.token.session_wait,
        )
        self.v2 = wrapper(verify=True)
        self.v1 = wrapper(verify=False)
        self._watching: asyncio.Task[None] | None = None

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
