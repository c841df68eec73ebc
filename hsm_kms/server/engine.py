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

from hsm_kms.errors import HsmKmsError, NonceBudgetError, UnknownKeyIdError
from hsm_kms.health.monitor import Monitor
from hsm_kms.ipc.values import Mechanism
from hsm_kms.keys.discovery import Discovery
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.keys.view import AnnouncedKeys, CurrentKeys
from hsm_kms.server import settings as wiring
from hsm_kms.token.alarm import Alarm
from hsm_kms.token.counts import Counts
from hsm_kms.token.login import PinGate
from hsm_kms.token.pool import Pool
from hsm_kms.token.workers import Workers
from hsm_kms.wrapping.by_token import CIPHERS, ByToken, canary
from hsm_kms.wrapping.kek_cache import KekCache
from hsm_kms.wrapping.local_lifecycle import LocalKeks
from hsm_kms.wrapping.wrapper import DekWrapper, Opening

if TYPE_CHECKING:
    from hsm_kms.config.schema import ApiV1, ApiV2, Config
    from hsm_kms.health.state import Health
    from hsm_kms.ipc.messages import RunCanary
    from hsm_kms.keys.keyring import Keyring, Pending, TokenKey
    from hsm_kms.keys.view import KeyView
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.wrapping.by_local_kek import LocalKek
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
        gate: The PIN.
        local: The local KEKs that it wraps with.
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
        self.gate = PinGate(wiring.pin_source(config), state)
        self.workers = Workers(
            wiring.worker_settings(config),
            pool=self.pool,
            gate=self.gate,
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
        self._opening = Opening(token, self.opened)
        self._announced_keys = AnnouncedKeys(self.keys, self._monitor)
        self._current_keys = CurrentKeys(self.keys, self._monitor)
        self._coming: dict[str, TokenKey] = {}  # by key_id, see `_ready`
        self._held: object = None
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

    def adjust(self, config: Config) -> None:
        """Go on with a configuration that is `wiring.adjustable`."""
        for name in ("v2", "v1"):
            before = getattr(self.config.apis, name).wrapping
            now = getattr(config.apis, name).wrapping
            if now != before:
                _log.info("wrapping", api=name, wrapping=now, before=before)
        self._use(config)
        self.keys_changed()
        self.health.evaluate()

    def _use(self, config: Config) -> None:
        self.config = config
        self.local.settings = wiring.local_settings(config)
        self.health.settings = wiring.health_settings(config)
        self.health.software = self._encrypts_without_token
        self.health.spent = self._spent
        self.v2 = self._wrapper(config.apis.v2, self._announced_keys)
        self.v1 = self._wrapper(config.apis.v1, self._current_keys)

    def _wrapper(self, api: ApiV2 | ApiV1, keys: KeyView) -> DekWrapper:
        settings = wiring.wrap_settings(self.config, api)
        unreached = self.health.call_failed
        return DekWrapper(self._opening, self.local, keys, settings, unreached)

    def start(self) -> None:
        """Start workers, monitor and the creation of local KEKs in the background."""
        self._monitor.attach(self.workers, self._well, ready=self._ready)
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
        self.keys_changed()

    # Local KEKs

    @property
    def _uses_local(self) -> bool:
        apis = self.config.apis
        return any(
            api.enabled and api.wrapping != "token" for api in (apis.v2, apis.v1)
        )

    def keys_changed(self) -> None:
        """Have local KEKs under the keys in use, and drop those of keys not held."""
        self._coming = {
            key_id: key
            for key_id, key in self._coming.items()
            if any(each.key.name == key.name for each in self._pending)
        }
        self.local.want(self._keys_in_use() if self._uses_local else ())
        ring = self.keys.ring
        if ring is None:
            return
        held = frozenset(ring.keys), ring.settings.retired
        if held != self._held:
            self._held = held
            self.opened.keep(lambda kek: _opens(ring, kek))

    @property
    def _rings(self) -> list[Keyring]:
        rings = (self.keys.ring, self.keys.announced_ring)
        return [ring for ring in rings if ring is not None and ring.fault is None]

    @property
    def _pending(self) -> list[Pending]:
        return [each for ring in self._rings for each in ring.pending]

    def _keys_in_use(self) -> list[TokenKey]:
        keys = [ring.current for ring in self._rings if ring.current is not None]
        return [*keys, *self._coming.values()]

    def _ready(self, key: TokenKey) -> bool:
        """Whether nothing is missing to make this key current."""
        if not self._uses_local or self.local.has(key):
            return True
        self._coming[key.key_id] = key  # maybe beside another whose time has come
        self.local.want(self._keys_in_use())
        return False

    @property
    def in_software(self) -> bool:
        """Whether Encrypt of some API would be answered now, were the token away."""
        return any(self._goes_on(api, key) for api, key in self._encrypting)

    def _encrypts_without_token(self) -> bool:
        """The same of the API that Status speaks of."""
        return self._goes_on(*self._encrypting[0])

    def _goes_on(self, api: ApiV2 | ApiV1, key: TokenKey | None) -> bool:
        if api.wrapping == "token" or key is None:
            return False
        return self.local.sealer(key) is not None

    @property
    def _encrypting(self) -> list[tuple[ApiV2 | ApiV1, TokenKey | None]]:
        """The enabled APIs, v2 first, and the key that each encrypts under."""
        apis, keys = self.config.apis, self.keys
        both = ((apis.v2, keys.announced_ring), (apis.v1, keys.ring))
        return [
            (api, ring.current if ring is not None else None)
            for api, ring in both
            if api.enabled
        ]

    def _spent(self) -> HsmKmsError | None:
        """Why the token wraps no more under the current key, None where it does."""
        api, key = self._encrypting[0]
        if key is None or not self._budget.is_spent(key.fingerprint):
            return None
        if api.wrapping == "software" and self._goes_on(api, key):
            return None
        return NonceBudgetError(
            "this node has wrapped under the current key as often as is safe",
            hint="rotate it: hsm-kms keys rotate",
        )

    async def close(self) -> None:
        """Fail what waits, let calls under way end with their workers, stop all."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.local.want(())
        self.pool.close()
        await self.workers.close()


def _opens(ring: Keyring, kek: LocalKek) -> bool:
    """Whether the key that wraps this local KEK is held, and not retired."""
    header = kek.nested.header
    try:
        ring.for_decrypt(header.key_id, CIPHERS[header.algorithm])
    except UnknownKeyIdError:
        return False
    return True
