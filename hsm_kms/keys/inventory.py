"""What the workers see of the keys, put together.

1. A key that one worker has seen is held; it is dropped when three looks in a row have
   missed it, each by a worker that once saw it, or is at least as young as the youngest
   that did. Some modules show an old process only what was there when it started.
2. A worker that still lacks what a younger one saw before is behind, and should be
   replaced.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from hsm_kms.ipc.values import Cipher, KeyRef
    from hsm_kms.keys.discovery import KeyListing
    from hsm_kms.keys.keyring import TokenKey
    from hsm_kms.token.process import Worker

MISSES_BELIEVED: Final = 3
BEHIND: Final = 2

_Object: TypeAlias = "tuple[KeyRef, Cipher]"


@dataclass(slots=True)
class _Held:
    key: TokenKey
    witness: float  # birth of the youngest worker that saw it
    misses: int = 0


class Inventory:
    """The keys of one token."""

    def __init__(self) -> None:
        self._held: dict[_Object, _Held] = {}
        self._seen: dict[Worker, frozenset[_Object]] = {}
        self._ever: dict[Worker, set[_Object]] = {}
        self._lacks: dict[Worker, Counter[_Object]] = {}
        self.first_seen: dict[str, float] = {}

    @property
    def keys(self) -> tuple[TokenKey, ...]:
        """The keys held, in a stable order."""
        held = (each.key for each in self._held.values())
        return tuple(sorted(held, key=lambda key: (key.age, key.cipher)))

    def note(self, worker: Worker, listing: KeyListing, now: float) -> None:
        """A worker has looked.

        Args:
            worker: Who.
            listing: What it saw.
            now: Seconds since the Unix epoch.
        """
        seen = {key.found_by: key for key in listing.keys}
        self._seen[worker] = frozenset(seen)
        self._ever.setdefault(worker, set()).update(seen)
        before = self._lacks.get(worker, Counter())
        self._lacks[worker] = Counter(
            {
                name: before[name] + 1
                for name, held in self._held.items()
                if not (self._can_see(worker, name) or held.misses)
            }
        )
        # Who misses a key that is there has lost sight of it, and is no witness.
        for who, ever in self._ever.items():
            ever.difference_update(seen.keys() - self._seen[who])
        for name, key in seen.items():
            held = self._held.get(name)
            witness = max(worker.born, held.witness if held else worker.born)
            self._held[name] = _Held(key=key, witness=witness)
            self.first_seen.setdefault(key.fingerprint, now)
        for name in [name for name in self._held if name not in seen]:
            self._miss(name, worker)

    def _can_see(self, worker: Worker, name: _Object) -> bool:
        """Whether this worker would see the object, were it there.

        One that sees nothing at all may have lost its token, not the keys.
        """
        once = name in self._ever[worker] and bool(self._seen[worker])
        return once or worker.born >= self._held[name].witness

    def _miss(self, name: _Object, worker: Worker) -> None:
        held = self._held[name]
        if not self._can_see(worker, name):
            return
        held.misses += 1
        if held.misses >= MISSES_BELIEVED:
            del self._held[name]
            if all(each.fingerprint != held.key.fingerprint for each in self.keys):
                self.first_seen.pop(held.key.fingerprint, None)

    def sees(self, worker: Worker, key: TokenKey) -> bool:
        """Whether this worker saw the key when it last looked."""
        return key.found_by in self._seen.get(worker, frozenset())

    def is_behind(self, worker: Worker) -> bool:
        """Whether a younger worker saw what this one, looking later, did not.

        Twice in a row: a key that has just gone is first missed by one, then by all.
        """
        lacking = self._lacks.get(worker, Counter())
        return any(
            lacking[name] >= BEHIND and not held.misses
            for name, held in self._held.items()
        )

    def forget_lost(self) -> None:
        """Forget what workers saw that are gone, the keys aside."""
        there = {who for who in self._seen if not who.lost.is_set()}
        self._seen = {who: seen for who, seen in self._seen.items() if who in there}
        self._ever = {
            who: {name for name in names if name in self._held}
            for who, names in self._ever.items()
            if who in there
        }
        self._lacks = {who: some for who, some in self._lacks.items() if who in there}
