"""What one node makes of its keys, with workers whose sight the test decides.

Monitor, key holder, health, sightings and state directory are the real ones; only the
processes behind them are not there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hsm_kms.errors import HsmKmsError, MechanismError, WorkerLostError
from hsm_kms.health.monitor import Monitor
from hsm_kms.ipc.messages import Block
from hsm_kms.ipc.values import Cipher, KeyRef, Mechanism
from hsm_kms.keys.discovery import KeyListing
from hsm_kms.keys.key_id import fingerprint_of
from hsm_kms.keys.keyring import TokenKey
from hsm_kms.keys.node_keyring import NodeKeyring
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.token.alarm import Alarm
from hsm_kms.wrapping.by_token import canary

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.health.state import HealthState
    from hsm_kms.keys.keyring import KeySettings

LABEL = "k8s-kek"
WORKERS = 2


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
        self.lost = asyncio.Event()

    async def ask(self, request, _seconds) -> Block:
        """Wrap and unwrap a canary."""
        for key in self.sees:
            if key.ref == request.ref and key.fingerprint in self.fails:
                raise MechanismError("this key does not work here")
        return Block(block=b"")

    def retire(self, *_why: object) -> None:
        """It is to be replaced."""
        self.retiring = True
        self.lost.set()


@dataclass
class Peers:
    """The workers of one engine."""

    ready: list[Peer] = field(default_factory=list)
    last_error: HsmKmsError | None = None

    def recycle(self, worker: Peer) -> None:
        """As `token.workers.Workers` does."""
        if len(self.ready) >= WORKERS:
            worker.retire()


class _Sight:
    """Stands where `Discovery` reads a token."""

    def __init__(self, settings: KeySettings) -> None:
        self._suffix = f".{settings.suffix}" if settings.suffix else ""

    async def read(self, worker: Peer, _last: str | None, *, fresh: bool) -> KeyListing:
        """What this worker sees."""
        if worker.lost.is_set():
            raise WorkerLostError("it is gone")
        seen = worker.sees - (set() if fresh else worker.blind)
        worker.blind = set()
        keys = (
            replace(key, key_id=key.fingerprint + self._suffix)
            for key in sorted(seen, key=lambda key: key.ref.cka_id)
        )
        return KeyListing(keys=tuple(keys), nameless=None)


class Engine:
    """One engine: what `hsm_kms.server.engine` builds, without processes.

    Args:
        settings: The configuration.
        directory: The state directory.
        clock: Seconds since the Unix epoch.
        token: The keys on the token, as a fresh worker sees them.

    Attributes:
        last: key_id last current, as the test saw it.
        lacking: Fingerprints of keys under which there is no local KEK yet.
    """

    def __init__(self, settings: KeySettings, directory: Path, clock, token) -> None:
        self.settings = settings
        self.holder = NodeKeyring(settings, StateDir(directory).open(), clock)
        self.monitor = Monitor(
            _Sight(settings),
            self.holder,
            Alarm(),
            canary=lambda key, how: canary(key, how, ""),
            interval=30,
            call_timeout=2,
            start_timeout=60,
        )
        self.last = self.holder.last_key_id
        self.peers = Peers()
        self.token = token
        self.lacking: set[str] = set()
        self.monitor.attach(
            self.peers, lambda: None, lambda key: key.fingerprint not in self.lacking
        )

    @property
    def health(self):
        """The state."""
        return self.monitor.health

    async def come(self, fails: set[str] = frozenset()) -> None:
        """Start a worker, if one is missing; it may not qualify."""
        self.peers.ready = [each for each in self.peers.ready if not each.lost.is_set()]
        if len(self.peers.ready) >= WORKERS:
            return
        peer = Peer(set(self.token))
        peer.fails = set(fails)
        try:
            await self.monitor.qualify(peer)
        except HsmKmsError as error:
            self.peers.last_error = error
        else:
            self.peers.last_error = None
            self.peers.ready.append(peer)
        self.monitor.health.evaluate()

    async def look(self, peer: Peer) -> None:
        """One regular look; a worker that does not pass it is gone."""
        await self.monitor._look(peer)
        if peer.lost.is_set():
            await self.gone(peer)

    async def gone(self, peer: Peer) -> None:
        """A worker is gone."""
        peer.retire()
        if peer in self.peers.ready:
            self.peers.ready.remove(peer)
        self.monitor.health.evaluate()

    async def visit(self) -> None:
        """A fresh worker looks; who is behind is replaced."""
        await self.monitor._read(Peer(set(self.token)), fresh=False)
        self.monitor._visits.recycle(self.peers)
        for peer in [each for each in self.peers.ready if each.lost.is_set()]:
            await self.gone(peer)

    def state(self) -> HealthState:
        """What Status would say."""
        return self.health.look()
