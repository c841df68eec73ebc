"""Put together what the workers see of the keys.

Some PKCS#11 modules show a process only the keys that existed when it started, and some
show none after their token was removed and inserted again. So a listing without a key
proves little, and which worker made the listing counts:

1. A key that one worker has seen is held.
2. A held key is dropped when `MISSES_BELIEVED` listings in a row have missed it, each
   by a witness, and the first of them some time ago: alarms bring several in a second.
   One of them must be of a worker that sees some key, or that was started after the
   first miss: one that sees none may have lost its token, not the keys.
3. A witness is a worker that would see the key if it were there: one at least as young
   as the youngest that saw it, or one that once saw it and sees some key now. Seeing
   none is enough once a witness of the first kind has missed the key.
4. A worker that misses a key which another worker sees has lost sight of it: that it
   once saw the key counts no more.
5. A worker that is no witness for a held key, in `BEHIND` listings in a row, is behind
   and should be replaced.
6. A key whose CKA_LABEL and CKA_ID now lead to another key is dropped at once: this is
   no miss, but proof that it has lost its names.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from hsm_kms.keys.arrivals import Arrivals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hsm_kms.ipc.values import Cipher, KeyRef
    from hsm_kms.keys.discovery import KeyListing
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.token.process import Worker

MISSES_BELIEVED: Final = 3
MISSED_SECONDS: Final = 30.0  # usual, from the first miss to the last
BEHIND: Final = 2  # a key that has just gone is first missed by one worker, then by all

_Object: TypeAlias = "tuple[KeyRef, str, Cipher]"


@dataclass(slots=True)
class _Held:
    """Hold what is known of one key.

    Args:
        key: The key, as listed last.
        youngest: When the youngest worker that saw it was started.
        misses: Listings in a row, by witnesses, that missed it.
        missed_since: When the first of them was made, by the inventory's clock.
        missed_by_youngest: A worker at least as young as `youngest` was among them.
        confirmed: A worker was among them that cannot just have lost its token.
    """

    key: TokenKey
    youngest: float
    misses: int = 0
    missed_since: float = 0.0
    missed_by_youngest: bool = False
    confirmed: bool = False


@dataclass(slots=True)
class _View:
    """Hold what one worker sees.

    Args:
        born: When it was started.
        now: The objects in its latest listing.
        once: The objects it saw in some listing, and has not lost sight of.
        lacks: Listings in a row in which it was no witness for a held object.
        unclear: What its latest listing could not identify.
    """

    born: float
    now: frozenset[_Object] = frozenset()
    once: set[_Object] = field(default_factory=set)
    lacks: Counter[_Object] = field(default_factory=Counter)
    unclear: frozenset[KeyRef] = frozenset()

    def is_witness(self, name: _Object, held: _Held) -> bool:
        """Return True if this worker would see the object if it were there."""
        # A worker that sees nothing at all may have lost its token, not the keys.
        believed = bool(self.now) or held.missed_by_youngest
        return self.born >= held.youngest or (believed and name in self.once)

    def take(self, seen: frozenset[_Object]) -> None:
        """Take the latest listing."""
        self.now = seen
        self.once |= seen

    def count_lacking(self, held: Mapping[_Object, _Held]) -> None:
        """Count once more each held object that this worker is no witness for.

        While a key may have gone, because a witness missed it, it does not count.
        """
        self.lacks = Counter(
            {
                name: self.lacks[name] + 1
                for name, one in held.items()
                if not one.misses and not self.is_witness(name, one)
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """Name a key that has lost its names to another one.

    Args:
        key: The key that was held.
        by: The key that has its CKA_LABEL and CKA_ID now.
    """

    key: TokenKey
    by: TokenKey


class Inventory:
    """Hold the keys of one token.

    Args:
        apart: Seconds that must pass from the first miss of a key until it is dropped.
        clock: Returns seconds on the clock of `Worker.born`; None for the loop's.

    Attributes:
        first_seen: When each key held was seen first, by fingerprint, in seconds since
            the Unix epoch.
    """

    def __init__(
        self, apart: float = 0.0, clock: Callable[[], float] | None = None
    ) -> None:
        self._apart = apart
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._held: dict[_Object, _Held] = {}
        self._views: dict[Worker, _View] = {}
        self.first_seen: dict[str, float] = {}
        self._arrivals = Arrivals()

    @property
    def missed_at(self) -> Mapping[str, float]:
        """Return when each key that has appeared was last missed, by fingerprint."""
        return self._arrivals.missed_at

    @property
    def keys(self) -> tuple[TokenKey, ...]:
        """Return the keys held, in a stable order."""
        held = (each.key for each in self._held.values())
        return tuple(sorted(held, key=lambda key: (key.age, key.cipher)))

    def note(
        self, worker: Worker, listing: KeyListing, now: float
    ) -> tuple[Replaced, ...]:
        """Take a listing in.

        Args:
            worker: The worker that made it.
            listing: The keys that the worker sees.
            now: Seconds since the Unix epoch.

        Returns:
            The keys that have lost their names to another key.
        """
        seen = {key.found_by: key for key in listing.keys}
        new = {key.fingerprint for key in listing.keys if self._is_new(key)}
        self._arrivals.note(worker, new, now, shows_keys=bool(seen))
        replaced = tuple(self._replaced(seen, listing))
        for each in replaced:
            self._drop(each.key.found_by)
        view = self._views.setdefault(worker, _View(worker.born))
        view.take(frozenset(seen))
        view.unclear = frozenset(each.ref for each in listing.unidentified)
        # Before the keys are held: a worker lacks what others saw before it looked.
        view.count_lacking(self._held)
        self._lose_sight(frozenset(seen))
        self._hold(seen, worker, now)
        self._miss(view)
        return replaced

    def _is_new(self, key: TokenKey) -> bool:
        """Return True if no worker has shown the key, under whatever fingerprint.

        A key becomes another KEK when it gets its HMAC key, and one that could not be
        identified may be so now.
        """
        if key.fingerprint in self.first_seen:
            return False
        held = any(each.key.ref == key.ref for each in self._held.values())
        return not held and all(
            key.ref not in view.unclear for view in self._views.values()
        )

    def _replaced(
        self, seen: Mapping[_Object, TokenKey], listing: KeyListing
    ) -> Iterator[Replaced]:
        """Yield the keys that have lost their names to another key (rule 6)."""
        # A key that could not be identified may be the one that is held.
        unclear = {each.ref for each in listing.unidentified}
        new = {
            (key.ref, key.cipher): key
            for name, key in seen.items()
            if name not in self._held and key.ref not in unclear
        }
        for name, held in self._held.items():
            by = new.get((held.key.ref, held.key.cipher))
            if by is not None and name not in seen:
                yield Replaced(key=held.key, by=by)

    def _lose_sight(self, seen: frozenset[_Object]) -> None:
        """Note which workers miss a key that another worker sees (rule 4)."""
        for view in self._views.values():
            view.once -= seen - view.now

    def _hold(
        self, seen: Mapping[_Object, TokenKey], worker: Worker, now: float
    ) -> None:
        """Hold each key that a worker has seen (rule 1)."""
        for name, key in seen.items():
            held = self._held.get(name)
            youngest = max(worker.born, held.youngest if held else worker.born)
            self._held[name] = _Held(key, youngest)
            self.first_seen.setdefault(key.fingerprint, now)

    def _miss(self, view: _View) -> None:
        """Count the keys that a witness has missed, and drop them in time (rule 2)."""
        for name, held in list(self._held.items()):
            if name in view.now or not view.is_witness(name, held):
                continue
            moment = self._clock()
            if not held.misses:
                held.missed_since = moment
            held.misses += 1
            held.missed_by_youngest |= view.born >= held.youngest
            held.confirmed |= bool(view.now) or view.born >= held.missed_since
            lasted = moment - held.missed_since >= self._apart
            if held.misses >= MISSES_BELIEVED and lasted and held.confirmed:
                self._drop(name)

    def _drop(self, name: _Object) -> None:
        fingerprint = self._held.pop(name).key.fingerprint
        # The same key may be there as another object, too.
        if all(each.key.fingerprint != fingerprint for each in self._held.values()):
            self.first_seen.pop(fingerprint, None)
            self._arrivals.forget(fingerprint)

    def sees(self, worker: Worker, key: TokenKey) -> bool:
        """Return True if the latest listing of `worker` had this key."""
        view = self._views.get(worker)
        return view is not None and key.found_by in view.now

    def has_lost_all(self, worker: Worker) -> bool:
        """Return True if `worker` saw a key that is held, and lists no key now."""
        view = self._views.get(worker)
        return view is not None and bool(view.once) and not (view.now or view.unclear)

    def is_seen(self, key: TokenKey) -> bool:
        """Return True if the latest listing of some worker had this key."""
        return any(key.found_by in view.now for view in self._alive())

    def is_missed(self, key: TokenKey) -> bool:
        """Return True if the latest listing of some worker did not have this key."""
        return any(key.found_by not in view.now for view in self._alive())

    def _alive(self) -> Iterator[_View]:
        """Yield what each worker sees that is not lost."""
        for worker, view in self._views.items():
            if not worker.lost.is_set():
                yield view

    def is_behind(self, worker: Worker) -> bool:
        """Return True if `worker` should be replaced because it sees less (rule 5)."""
        view = self._views.get(worker)
        if view is None:
            return False
        return any(
            view.lacks[name] >= BEHIND and not held.misses
            for name, held in self._held.items()
        )

    def forget_lost(self) -> None:
        """Forget the workers that are gone; the keys they saw are still held."""
        self._arrivals.forget_lost()
        self._views = {
            worker: view
            for worker, view in self._views.items()
            if not worker.lost.is_set()
        }
        for view in self._views.values():
            view.once &= self._held.keys()
