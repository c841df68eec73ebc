"""Put together the parts that serve one configuration.

Where `server.reload` says "replace", another engine takes over from this one, and where
it says "adjust", this one goes on with other settings. The services do not notice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hsm_kms import clock, log
from hsm_kms.audit.port import UNAUDITED, Audit
from hsm_kms.health.canaries import Canaries
from hsm_kms.health.inspection import Inspection
from hsm_kms.health.monitor import Monitor
from hsm_kms.health.state import Health
from hsm_kms.ipc.values import Identify
from hsm_kms.keys.discovery import Discovery
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.keys.view import AnnouncedKeys, CurrentKeys
from hsm_kms.log import get_logger
from hsm_kms.server import settings
from hsm_kms.state_dir.directory import SAVE_SECONDS
from hsm_kms.state_dir.held import HeldStateDir
from hsm_kms.state_dir.store import StateWriteError
from hsm_kms.tasks import cancel_and_wait, keep_running
from hsm_kms.token.alarm import Alarm
from hsm_kms.token.counts import Counts
from hsm_kms.token.login import PinLogin
from hsm_kms.token.places import Unkillable
from hsm_kms.token.pool import Pool
from hsm_kms.token.workers import Workers
from hsm_kms.wrapping.by_token import ByToken
from hsm_kms.wrapping.kek_cache import KekCache
from hsm_kms.wrapping.local_lifecycle import LocalKeks
from hsm_kms.wrapping.standby import Standby
from hsm_kms.wrapping.wrapper import DekWrapper, Opening

if TYPE_CHECKING:
    from hsm_kms.config.schema import ApiV1, ApiV2, Config
    from hsm_kms.keys.key_audit import KeyAudit
    from hsm_kms.keys.view import KeyView
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.wrapping.nonce_budget import NonceBudget

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """Hold what outlives an engine.

    Args:
        state: The state directory.
        budget: How often each KEK has wrapped on this node.
        counts: Running totals.
        opened: The local KEKs that the token has decrypted.
        unkillable: The workers that cannot be killed.
        started: When the server started, in seconds since the Unix epoch.
        audit: Takes the records of all decisions.
        key_audit: Records what each key is used for; None if that is not recorded.
    """

    state: StateDir
    budget: NonceBudget
    counts: Counts = field(default_factory=Counts)
    opened: KekCache = field(default_factory=KekCache)
    unkillable: Unkillable = field(default_factory=Unkillable)
    started: float = field(default_factory=clock.now)
    audit: Audit = UNAUDITED
    key_audit: KeyAudit | None = None


class Engine:
    """Put the parts together that serve one configuration, start and close them.

    Args:
        config: The configuration.
        lasting: What outlives this engine.
        on_trial: False for the first engine, which is in force from the beginning.

    Attributes:
        config: The configuration.
        alarm: Raised when an inspection should run soon.
        keys: The keys of this node.
        canaries: What has been proven on which worker.
        health_key: Used in place of the KEKs; None if there is none.
        pool: The sessions.
        login: Logs workers in, and knows the verdict on the PIN.
        workers: The worker processes.
        health: The state that Status reports.
        local: The local KEKs to wrap with.
        standby: Decides which local KEKs must exist.
        opened: The local KEKs in memory.
        opening: Unwraps for both APIs.
        v2: Wraps and unwraps for v2.
        v1: Wraps and unwraps for v1.
    """

    def __init__(
        self, config: Config, lasting: Lasting, *, on_trial: bool = True
    ) -> None:
        self.config = config
        self._origin = log.Origin("on trial" if on_trial else None)
        self._state = HeldStateDir(lasting.state, holds=on_trial)
        self.opened = lasting.opened
        self.alarm = Alarm()
        self.keys = NodeKeyring(
            settings.key_settings(config),
            self._state,
            audit=lasting.key_audit,
            speaks=not on_trial,
        )
        self.canaries = Canaries(
            self.keys,
            self.alarm,
            lasting.budget,
            config.scope,
            call_timeout=config.token.call_timeout,
            spares_keks=config.health.spares_keks,
        )
        self.health_key = settings.health_key(config)
        self.pool = _pool(config, self.alarm, lasting.counts)
        token = ByToken(self.pool, lasting.budget, scope=config.scope)
        self.local = LocalKeks(
            token,
            self.opened,
            config.local_keys,
            offline_for=self.canaries.offline_for,
            alarm=self.alarm,
            created=lasting.counts.created,
        )
        self.standby = Standby(
            config.apis,
            self.keys,
            local=self.local,
            opened=self.opened,
            budget=lasting.budget,
        )
        interval = min(config.health.interval, config.keys.discover)
        inspection = Inspection(
            _discovery(config, self._state),
            self.keys,
            self.canaries,
            self.standby,
            self.pool.breaker,
            start_timeout=config.token.start_timeout,
            interval=interval,
            health_key=self.health_key,
        )
        self.login = PinLogin(
            settings.pin_source(config), self._state, audit=lasting.audit
        )
        self.workers = Workers(
            settings.worker_settings(config),
            pool=self.pool,
            login=self.login,
            qualify=inspection.qualify,
            alarm=self.alarm,
            counts=lasting.counts,
            unkillable=lasting.unkillable,
        )
        self.health = Health(
            self.keys,
            self.canaries,
            self.workers,
            self.standby,
            config.health,
            audit=lasting.audit,
        )
        self._monitor = Monitor(
            self.workers,
            inspection,
            self.health,
            self.keys,
            self.alarm,
            interval=interval,
        )
        self.opening = Opening(token, self.opened)
        self._wrap_as_configured()
        if not on_trial:
            self.standby.own_cache()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def well(self) -> bool:
        """Return True if the token works and no local KEK is still being created."""
        return self.health.works and self.local.settled

    @property
    def in_software(self) -> bool:
        """Return True if Encrypt of some API would be answered without the token."""
        return self.standby.in_software

    def start(self) -> None:
        """Start workers, monitor and the creation of local KEKs in the background."""
        with log.logged_by(self._origin):  # and so by every task that these start
            self.workers.start()
            self._tasks = [
                asyncio.create_task(keep_running("monitor", self._monitor.run)),
                asyncio.create_task(keep_running("local KEKs", self.local.run)),
            ]

    async def take_effect(self) -> None:
        """Save what the trial found, and decide and speak for the server from now on.

        If the disk does not answer within `SAVE_SECONDS`, that is logged, and the
        current key is saved later.
        """
        try:
            await self._state.background(self._state.release, SAVE_SECONDS)
        except StateWriteError as error:
            self.keys.memory.not_saved(error)
        self._origin.name = None
        self.keys.take_effect()
        self.standby.own_cache()

    def step_back(self) -> None:
        """Leave the decisions to another engine: switch no key, save and drop nothing.

        Requests are still answered until `close`.
        """
        self._origin.name = "leaving"
        self._state.hold()
        self.keys.freeze()
        self.standby.disown_cache()

    def adjust(self, config: Config) -> None:
        """Go on with a configuration that needs no other engine.

        Args:
            config: One that `reload.plan` finds adjustable.
        """
        for name in ("v2", "v1"):
            before = getattr(self.config.apis, name).wrapping
            now = getattr(config.apis, name).wrapping
            if now != before:
                _log.info(
                    "wrapping mode changed", api=name, wrapping=now, before=before
                )
        self.config = config
        self.local.adjust(config.local_keys)
        self._wrap_as_configured()
        self.standby.adjust(config.apis)
        self.health.adjust(config.health)

    def _wrap_as_configured(self) -> None:
        apis = self.config.apis
        self.v2 = self._wrapper(apis.v2, AnnouncedKeys(self.keys, self._monitor))
        self.v1 = self._wrapper(apis.v1, CurrentKeys(self.keys, self._monitor))

    def _wrapper(self, api: ApiV2 | ApiV1, keys: KeyView) -> DekWrapper:
        wrap = settings.wrap_settings(self.config, api)
        unreached = self.health.call_failed
        return DekWrapper(self.opening, self.local, keys, wrap, unreached)

    async def close(self) -> None:
        """Fail waiting requests, let calls under way end, stop every worker."""
        for task in self._tasks:
            await cancel_and_wait(task)
        self.local.want(())
        self.pool.close()
        await self.workers.close()


def _pool(config: Config, alarm: Alarm, counts: Counts) -> Pool:
    return Pool(
        session_wait=config.token.session_wait,
        call_timeout=config.token.call_timeout,
        alarm=alarm,
        counts=counts,
    )


def _discovery(config: Config, state: StateDir) -> Discovery:
    return Discovery(
        settings.key_settings(config),
        state,
        seconds=config.token.hang_timeout,
        start_seconds=config.token.start_timeout,
        freeze=True,
        identify=Identify.ONCE if config.health.spares_keks else Identify.ALWAYS,
    )
