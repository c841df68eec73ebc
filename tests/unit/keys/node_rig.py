"""One node without processes: the test decides what each worker sees.

Inspection, canaries, keyring, inventory, health and state directory are the real ones;
only the processes and the local KEKs behind them are not there.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from hsm_kms.config import schema
from hsm_kms.errors import (
    HsmKmsError,
    KeyUnsuitableError,
    MechanismError,
    WorkerLostError,
)
from hsm_kms.health.canaries import Canaries
from hsm_kms.health.fresh_worker import FreshWorkerChecks
from hsm_kms.health.inspection import Inspection
from hsm_kms.health.monitor import Monitor
from hsm_kms.health.state import Health
from hsm_kms.ipc.fingerprints import fingerprint_of
from hsm_kms.ipc.messages import Encrypted
from hsm_kms.ipc.values import Cipher, KeyRef, Mechanism
from hsm_kms.keys.discovery import KeyListing
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.keys.token_key import (
    TokenKey,
    UnidentifiedKey,
)
from hsm_kms.keys.trial import PASSED, UNTRIED, Trial
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.state_dir.held import HeldStateDir
from hsm_kms.token.alarm import Alarm
from hsm_kms.token.breaker import Breaker
from hsm_kms.token.ends import ENDS, End

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from hsm_kms.health.state import HealthState
    from hsm_kms.keys.token_key import KeySettings
    from hsm_kms.state_dir.records import LastKey

LABEL = "k8s-kek"
WORKERS = 2
INTERVAL = 30.0


def make_key(
    number: int, activation: float, *, born_here: bool = True, offending: bool = False
) -> TokenKey:
    """A key of the token.

    Args:
        number: Tells it from every other one.
        activation: Seconds since the Unix epoch.
        born_here: It may become current by its time.
        offending: The policy forbids it.
    """
    fingerprint = fingerprint_of(b"%d" % number)
    return TokenKey(
        ref=KeyRef(LABEL, b"%d" % number),
        fingerprint=fingerprint,
        key_id=fingerprint,
        cipher=Cipher.GCM,
        mechanism=Mechanism.GCM_CALLER,
        activation=int(activation),
        violations=("CKA_EXTRACTABLE is True",) if offending else (),
        born_here=born_here,
    )


class Peer:
    """A worker that sees some keys, and can wrap under some of them.

    Args:
        sees: The keys it sees.

    Attributes:
        sees: The keys it sees.
        fails: Fingerprints of keys it cannot wrap under.
        blind: It misses these in its next listing alone.
    """

    token_serial = "serial"  # noqa: S105 - of a PKCS#11 token

    def __init__(self, sees: set[TokenKey]) -> None:
        self.sees = sees
        self.fails: set[str] = set()
        self.blind: set[TokenKey] = set()
        self.born = asyncio.get_running_loop().time()
        self.retiring = False
        self.leaving = False
        self.lost = asyncio.Event()

    async def ask(self, request, _seconds) -> Encrypted:
        """Wrap and unwrap a canary."""
        for key in self.sees:
            if key.fingerprint == request.fingerprint and key.fingerprint in self.fails:
                raise MechanismError("this key does not work here")
        return Encrypted(iv=b"", ciphertext=b"")

    def retire(self, *_why: object) -> None:
        """Replace it."""
        self.retiring = True
        self.lost.set()


class Peers:
    """The workers of one engine.

    Args:
        token: The keys on the token, as a fresh worker sees them.
    """

    def __init__(self, token: set[TokenKey]) -> None:
        self._token = token
        self.ready: list[Peer] = []
        self.last_error: HsmKmsError | None = None
        self.failed_at = 0.0

    @contextlib.asynccontextmanager
    async def fresh_worker(self) -> AsyncIterator[Peer]:
        """A fresh worker."""
        yield Peer(set(self._token))

    def end(self, worker: Peer, end: End, _why: str) -> None:
        """As `token.workers.Workers` does."""
        if not ENDS[end].alone or len(self.ready) >= WORKERS:
            worker.retire()

    def canary_passed(self) -> None:
        """The token works."""


class _Sight:
    """Stands where `Discovery` reads a token."""

    def __init__(self, settings: KeySettings, damaged: AbstractSet[str]) -> None:
        self._suffix = f".{settings.suffix}" if settings.suffix else ""
        self._damaged = damaged

    async def read_names(self, _worker: Peer, _held: object) -> None:
        """Have every key identified, as by default."""

    async def read(
        self, worker: Peer, _last: LastKey | None, *, fresh: bool, between: object
    ) -> KeyListing:
        """What this worker sees."""
        if worker.lost.is_set():
            raise WorkerLostError("it is gone")
        seen = worker.sees - (set() if fresh else worker.blind)
        worker.blind = set()
        keys = [
            replace(key, key_id=key.fingerprint + self._suffix)
            for key in sorted(seen, key=lambda key: key.ref.cka_id)
        ]
        return KeyListing(
            keys=tuple(k for k in keys if k.fingerprint not in self._damaged),
            unidentified=tuple(
                UnidentifiedKey(ref=key.ref, error=KeyUnsuitableError("damaged"))
                for key in keys
                if key.fingerprint in self._damaged
            ),
        )


class StandIn:
    """Stands where `Standby` decides about local KEKs.

    Attributes:
        lacking: Fingerprints of keys under which there is no local KEK yet.
        encrypts_without_token: A local KEK can wrap.
        spent: Why the token wraps no more.
    """

    def __init__(self) -> None:
        self.lacking: set[str] = set()
        self.encrypts_without_token = False
        self.spent: HsmKmsError | None = None

    def trial(self, key: TokenKey) -> Trial:
        """Pass if there is a local KEK under this key."""
        return UNTRIED if key.fingerprint in self.lacking else PASSED

    def keys_changed(self) -> None:
        """Make no local KEK."""


class Uncounted:
    """Stands where `NonceBudget` counts."""

    def spend(self, _fingerprint: str, *, refuse: bool) -> None:
        """Count nothing."""


class Engine:
    """One engine: what `hsm_kms.server.engine` builds, without processes.

    Args:
        settings: The configuration.
        directory: The state directory.
        clock: Seconds since the Unix epoch.
        token: The keys on the token, as a fresh worker sees them.
        health: How an outage is reported.
        damaged: Fingerprints of keys that cannot be identified.

    Attributes:
        last: key_id last current, as the test saw it.
    """

    def __init__(
        self,
        settings: KeySettings,
        directory: Path,
        clock,
        token,
        health=None,
        damaged: AbstractSet[str] = frozenset(),
    ) -> None:
        self.settings = settings
        self.state_dir = HeldStateDir(StateDir(directory).open())
        self.keyring = NodeKeyring(settings, self.state_dir, clock)
        self.alarm = Alarm()
        self.peers = Peers(token)
        self.standby = StandIn()
        canaries = Canaries(self.keyring, self.alarm, Uncounted(), "", call_timeout=2.0)
        self.inspection = Inspection(
            _Sight(settings, damaged),
            self.keyring,
            canaries,
            self.standby,
            Breaker(),
            start_timeout=60,
            interval=0.0,
        )
        self.health = Health(
            self.keyring,
            canaries,
            self.peers,
            self.standby,
            health or schema.Health(),
        )
        self.monitor = Monitor(
            self.peers,
            self.inspection,
            self.health,
            self.keyring,
            self.alarm,
            interval=INTERVAL,
        )
        self.fresh_checks = FreshWorkerChecks(
            self.peers, self.inspection, self.alarm, INTERVAL
        )
        self.last = self.keyring.last_key_id
        self.token = token

    @property
    def lacking(self) -> set[str]:
        """Fingerprints of keys under which there is no local KEK yet."""
        return self.standby.lacking

    @lacking.setter
    def lacking(self, fingerprints: set[str]) -> None:
        self.standby.lacking = fingerprints

    def take_effect(self) -> Engine:
        """Serve: what the trial found is saved."""
        self.state_dir.release()
        return self

    def step_back(self) -> None:
        """Leave: another engine serves."""
        self.state_dir.hold()
        self.keyring.freeze()

    async def come(self, fails: set[str] = frozenset()) -> None:
        """Start a worker, if one is missing; it may not qualify."""
        self.peers.ready = [each for each in self.peers.ready if not each.lost.is_set()]
        if len(self.peers.ready) >= WORKERS:
            return
        peer = Peer(set(self.token))
        peer.fails = set(fails)
        try:
            await self.inspection.qualify(peer)
        except HsmKmsError as error:
            self.peers.last_error = error
            self.peers.failed_at = asyncio.get_running_loop().time()
        else:
            self.peers.last_error = None
            self.peers.ready.append(peer)
        self.health.evaluate()

    async def look(self, peer: Peer) -> None:
        """One regular look; a worker that does not pass it is gone."""
        await self.monitor.look(peer)
        if peer.lost.is_set():
            await self.gone(peer)

    async def gone(self, peer: Peer) -> None:
        """A worker is gone."""
        peer.retire()
        if peer in self.peers.ready:
            self.peers.ready.remove(peer)
        self.health.evaluate()

    async def visit(self) -> None:
        """Let a fresh worker read the keys; a worker that is behind is replaced."""
        await self.fresh_checks.check()
        self.fresh_checks.recycle()
        for peer in [each for each in self.peers.ready if each.lost.is_set()]:
            await self.gone(peer)

    def state(self) -> HealthState:
        """What Status would say."""
        return self.health.look()
