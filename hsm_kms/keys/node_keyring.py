"""Keep the keyring of this node: which key is current, was current, is announced.

1. A key that becomes current is saved in the state directory before any client sees
   its key_id.
2. v1, which announces nothing, follows the clock. v2 encrypts under the key_id that
   Status gave last, so that Status and Encrypt never disagree.
3. A key becomes current by its activation time only once it works on every worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from hsm_kms.clock import now
from hsm_kms.errors import KeyNotFoundError
from hsm_kms.keys.key_log import KeyLog
from hsm_kms.keys.key_memory import KeyMemory
from hsm_kms.keys.odd_keys import OddKeys
from hsm_kms.keys.rotation import build_keyring
from hsm_kms.keys.trial import UNTRIED

if TYPE_CHECKING:
    from hsm_kms.keys.inventory import Inventory
    from hsm_kms.keys.key_audit import KeyAudit
    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.keys.token_key import (
        KeySettings,
        TokenKey,
        UnidentifiedKey,
    )
    from hsm_kms.keys.trial import Try
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.state_dir.records import LastKey

Clock: TypeAlias = Callable[[], float]


class NodeKeyring:
    """Hold the keys of this node, and decide with `rotation` which one it uses.

    Args:
        settings: The configuration.
        state_dir: Where the last current key is saved.
        clock: Seconds since the Unix epoch.
        audit: Records what each key is used for; None if nobody wants to know.
        speaks: False while another engine decides for the server.

    Attributes:
        clock: Seconds since the Unix epoch.
        memory: The key last current, and what is known of its identity.
        ring: The keys as last read; None until they have been read.
    """

    def __init__(
        self,
        settings: KeySettings,
        state_dir: StateDir,
        clock: Clock = now,
        *,
        audit: KeyAudit | None = None,
        speaks: bool = True,
    ) -> None:
        self._settings = settings
        self.clock = clock
        self.memory = KeyMemory(settings, state_dir)
        self._announced = ""
        self._announced_ring: Keyring | None = None
        self._key_log = KeyLog()
        self._odd_keys = OddKeys()
        self._audit = audit
        self._speaks = speaks
        self.ring: Keyring | None = None
        self._frozen = False
        self._adopting = asyncio.Lock()

    @property
    def last(self) -> LastKey | None:
        """Return the key last current on this node; None if there never was one."""
        return self.memory.last

    @property
    def last_key_id(self) -> str | None:
        """Return the key_id last current on this node; None if there never was one."""
        return self.last.key_id if self.last else None

    @property
    def key_id(self) -> str:
        """Return the key_id that Status gives; "" if there never was a current key."""
        if self.last is not None:
            return self.last.key_id
        if self.ring is not None and self.ring.current is not None:
            return self.ring.current.key_id
        return ""

    @property
    def current(self) -> TokenKey | None:
        """Return the current key as last read; None if there is none."""
        return self.ring.current if self.ring is not None else None

    @property
    def announced(self) -> str:
        """Return the key_id that Status gave last; "" before the first Status."""
        return self._announced

    @property
    def announced_ring(self) -> Keyring | None:
        """Return the keyring whose current key is the one that Status gave last.

        None until the keys have been read.
        """
        return self._announced_ring

    def announce(self, key_id: str) -> None:
        """Encrypt under this key_id in v2 from now on: Status gives it.

        Args:
            key_id: `key_id`, as it was when the state of health was judged.
        """
        self._announced = key_id
        self._announced_ring = self._with_announced(self.ring)

    def freeze(self) -> None:
        """Switch to no other key any more: another engine is about to serve."""
        self._frozen = True
        self._speaks = False

    def take_effect(self) -> None:
        """Decide for the server from now on."""
        self._speaks = True
        self._record_states()

    def seconds_to_next(self, since: float) -> float | None:
        """Return the seconds to the next activation time; None if there is none.

        Args:
            since: When the latest inspection began, in seconds since the Unix epoch.
                A key whose time has come after that has not been tried: 0.
        """
        if self.ring is None:
            return None
        moment = self.clock()
        coming = [
            max(0.0, each.at - moment)
            for each in self.ring.pending
            if each.at is not None and each.at > min(since, moment)
        ]
        return min(coming, default=None)

    async def adopt(
        self,
        inventory: Inventory,
        unidentified: tuple[UnidentifiedKey, ...],
        try_key: Try,
        token_serial: str,
    ) -> None:
        """Rebuild the keyring from the keys read, and switch if it is time.

        A key that becomes current is saved first, and the keyring changes after that;
        meanwhile the old keyring is in force. A disk that does not answer delays a
        switch by at most `SAVE_SECONDS`.

        Args:
            inventory: The keys held.
            unidentified: Keys that could not be identified.
            try_key: Returns how the trial of a key that is due went.
            token_serial: Serial number of the token.
        """
        async with self._adopting:  # one after the other: a decision is made and kept
            if self.memory.fault is not None:  # an operator may have mended it
                self.memory.load()
            ring, failures = self._decide(inventory, unidentified, try_key)
            if self.memory.fault is not None and self._settings.current is None:
                ring = replace(ring, fault=self.memory.fault)
            if ring.fault is None and ring.current is not None and not self._frozen:
                kept = await self._keep(ring.current, token_serial)
                if not kept:
                    ring, failures = self._decide(inventory, unidentified, try_key)
            # No await from here to the end, nor in the caller.
            self.ring = ring
            self._key_log.note(ring, failures)
            self._odd_keys.log(ring)
            self._record_states()
            self._announced_ring = self._with_announced(ring)

    def _record_states(self) -> None:
        if self._speaks and self._audit is not None and self.ring is not None:
            self._audit.note(self.ring)

    def preview(
        self, inventory: Inventory, unidentified: tuple[UnidentifiedKey, ...]
    ) -> Keyring:
        """Return the keyring without a switch; nothing is saved.

        Args:
            inventory: The keys held.
            unidentified: Keys that could not be identified.
        """
        return self._decide(inventory, unidentified, lambda _: UNTRIED)[0]

    def _decide(
        self,
        inventory: Inventory,
        unidentified: tuple[UnidentifiedKey, ...],
        try_key: Try,
    ) -> tuple[Keyring, dict[str, str]]:
        """Return the keyring, and by key_id why keys that are due cannot be used."""
        memory = replace(
            self.memory.memory(),
            first_seen=inventory.first_seen,
            missed_at=inventory.missed_at,
            not_yet=frozenset(key.name for key in inventory.keys),
        )
        moment = self.clock()
        make = partial(
            build_keyring,
            inventory.keys,
            self._settings,
            now=moment,
            unidentified=unidentified,
        )
        ring = make(memory)
        failures: dict[str, str] = {}
        for key in () if self._frozen else _due(ring, moment):
            trial = try_key(key)
            if trial.passed:
                not_yet = memory.not_yet - {key.name}
                return make(replace(memory, not_yet=not_yet)), failures
            if trial.failure:
                failures[key.key_id] = trial.failure
        return ring, failures

    def _with_announced(self, ring: Keyring | None) -> Keyring | None:
        """Return the keyring as v2 may use it.

        v2 never encrypts under another key_id than Status gave last.
        """
        if ring is None or ring.fault is not None or not self._announced:
            return ring
        if ring.current is not None and ring.current.key_id == self._announced:
            return ring
        for key in ring.keys:
            if key.key_id == self._announced and ring.may_encrypt(key):
                return replace(ring, current=key)
        return replace(
            ring,
            fault=KeyNotFoundError(
                f"the key that Status gave last, {self._announced}, cannot encrypt "
                "any more",
                hint="the next Status gives another",
            ),
        )

    async def _keep(self, key: TokenKey, token_serial: str) -> bool:
        """Save the current key, then remember it; return False if frozen meanwhile."""
        last = await self.memory.save(key, token_serial, self.clock())
        if self._frozen:
            return False
        self.memory.keep(key, last)
        return True


def _due(ring: Keyring, moment: float) -> list[TokenKey]:
    """Return the keys whose activation time has come, the youngest first."""
    keys = [e.key for e in ring.pending if e.at is not None and e.at <= moment]
    return sorted(keys, key=lambda key: key.age, reverse=True)
