"""Everything that stands behind the services, for one configuration.

A reload that touches token, keys or scope makes a new engine and drops the old one;
any other changes the settings of this one. The services do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from hsm_kms.health.monitor import Monitor
from hsm_kms.ipc.values import Mechanism
from hsm_kms.keys.discovery import Discovery
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.keys.view import AnnouncedKeys, CurrentKeys
from hsm_kms.server import settings as wiring
from hsm_kms.token.alarm import Alarm
from hsm_kms.token.counts import Counts
from hsm_kms.token.login import PinLogin
from hsm_kms.token.pool import Pool
from hsm_kms.token.workers import Workers
from hsm_kms.wrapping.by_token import ByToken, canary
from hsm_kms.wrapping.kek_cache import KekCache
from hsm_kms.wrapping.local_lifecycle import LocalKeks
from hsm_kms.wrapping.standby import Standby
from hsm_kms.wrapping.wrapper import DekWrapper, Opening

if TYPE_CHECKING:
    from hsm_kms.config.schema import ApiV1, ApiV2, Config
    from hsm_kms.health.state import Health
    from hsm_kms.ipc.messages import RunCanary
    from hsm_kms.keys.keyring import TokenKey
    from hsm_kms.keys.view import KeyView
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.wrapping.nonce_budget import NonceBudget

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """What outlives an engine.

    Args:
        state: The state directory.
        budget: What each KEK has wrapped on this node.
        counts: Running totals.
        opened: Local KEKs that the token has opened.
    """

    state: StateDir
    budget: NonceBudget
    counts: Counts = field(default_factory=Counts)
    opened: KekCache = field(default_factory=KekCache)


class Engine:
    """Pool, workers, monitor, local KEKs and wrappers.

    Args:
        config: The configuration.
        lasting: What outlives this engine.

    Attributes:
        config: The configuration.
        alarm: Raised when an inspection should run soon.
        pool: The sessions.
        workers: The worker processes.
        login: Logs workers in, and knows what became of the PIN.
        local: The local KEKs that it wraps with.
        standby: Decides which local KEKs must exist.
        opened: The local KEKs that it can open records with.
        v2: What seals and opens for v2.
        v1: The same for v1.
    """

    def __init__(self, config: Config, lasting: Lasting) -> None:
        state, counts = lasting.state, lasting.counts
        self._budget = lasting.budget
        settings = wiring.key_settings(config)
        self.alarm = Alarm()
        self._monitor = Monitor(
            Discovery(
                settings,
                state,
                seconds=config.token.call_timeout,
                start_seconds=config.token.start_timeout,
                freeze=True,
            ),
            NodeKeyring(settings, state),
            self.alarm,
            canary=self._canary,
            interval=min(config.health.interval, config.keys.discover),
            call_timeout=config.token.call_timeout,
            start_timeout=config.token.start_timeout,
        )
        self.pool = Pool(
            session_wait=config.token.session_wait,
            call_timeout=config.token.call_timeout,
            alarm=self.alarm,
            counts=counts,
        )
        self.login = PinLogin(wiring.pin_source(config), state)
        self.workers = Workers(
            wiring.worker_settings(config),
            pool=self.pool,
            login=self.login,
            qualify=self._monitor.qualify,
            alarm=self.alarm,
            counts=counts,
        )
        token = ByToken(self.pool, lasting.budget, scope=config.scope)
        self.opened = lasting.opened
        self.local = LocalKeks(
            token,
            self.opened,
            wiring.local_settings(config),
            offline=lambda: self.health.offline_for,
            on_born=partial(self.alarm.notify, "a local KEK was created"),
            created=counts.created,
        )
        self.standby = Standby(
            config.apis,
            self.keys,
            local=self.local,
            opened=self.opened,
            budget=lasting.budget,
        )
        self._opening = Opening(token, self.opened)
        self._announced_keys = AnnouncedKeys(self.keys, self._monitor)
        self._current_keys = CurrentKeys(self.keys, self._monitor)
        self._tasks: list[asyncio.Task[None]] = []
        self.config = config
        self._use(config)

    @property
    def keys(self) -> NodeKeyring:
        """What was learnt about its keys."""
        return self._monitor.holder

    @property
    def health(self) -> Health:
        """What was learnt about the token."""
        return self._monitor.health

    @property
    def well(self) -> bool:
        """Whether it serves as its configuration says."""
        return self.health.look().state == "ok" and self.local.settled

    @property
    def in_software(self) -> bool:
        """True if, without the token, Encrypt of some API would be answered now."""
        return self.standby.in_software

    def adjust(self, config: Config) -> None:
        """Go on with a configuration that is `wiring.adjustable`."""
        for name in ("v2", "v1"):
            before = getattr(self.config.apis, name).wrapping
            now = getattr(config.apis, name).wrapping
            if now != before:
                _log.info("wrapping", api=name, wrapping=now, before=before)
        self._use(config)
        self.standby.adjust(config.apis)
        self.health.evaluate()

    def _use(self, config: Config) -> None:
        self.config = config
        self.local.settings = wiring.local_settings(config)
        self.health.settings = wiring.health_settings(config)
        self.health.software = lambda: self.standby.encrypts_without_token
        self.health.spent = lambda: self.standby.spent
        self.v2 = self._wrapper(config.apis.v2, self._announced_keys)
        self.v1 = self._wrapper(config.apis.v1, self._current_keys)

    def _wrapper(self, api: ApiV2 | ApiV1, keys: KeyView) -> DekWrapper:
        settings = wiring.wrap_settings(self.config, api)
        unreached = self.health.call_failed
        return DekWrapper(self._opening, self.local, keys, settings, unreached)

    def start(self) -> None:
        """Start workers, monitor and the creation of local KEKs in the background."""
        self._monitor.attach(self.workers, self._well, ready=self.standby.ready)
        self.workers.start()
        self._tasks = [
            asyncio.create_task(self._monitor.run()),
            asyncio.create_task(self.local.run()),
        ]

    def _canary(self, key: TokenKey, mechanism: Mechanism) -> RunCanary:
        """The request for a canary; counted, and never refused."""
        if mechanism is Mechanism.GCM_CALLER:
            self._budget.spend(key.fingerprint, refuse=False)
        return canary(key, mechanism, self.config.scope)

    def _well(self) -> None:
        """A canary has passed."""
        self.pool.breaker.close()
        self.workers.canary_passed()
        self.standby.keys_changed()

    async def close(self) -> None:
        """Fail what waits, let calls under way end with their workers, stop all."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.local.want(())
        self.pool.close()
        await self.workers.close()
