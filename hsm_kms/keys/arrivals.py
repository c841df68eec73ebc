"""Tell until when a key was missed that has appeared since.

A key made by hsm-kms never appears after its activation time, but for the time between
two listings. One that does is proof that this node's clock is wrong, that another
node's clock was when the key was made, or that the key was made elsewhere.

1. A worker that has listed keys before, and now sees a key that it did not, missed the
   key until its last listing. For a worker that lists keys for the first time the
   latest first listing of any worker counts, because some modules show a process only
   the keys that existed when it started.
2. A listing that shows no key at all proves nothing: the token may be unavailable.
3. When the clock is set back, the times that it told before are set back with it. When
   it is set forward they are not: the process may have been paused.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hsm_kms.token.process import Worker

SET_BACK_SECONDS: Final = 1.0  # less is noise


class Arrivals:
    """Keep the times of listings, and what they prove of keys that are new.

    Attributes:
        missed_at: When each key was last missed before it appeared, by fingerprint, in
            seconds since the Unix epoch. A key that was there from the start has none.
    """

    def __init__(self) -> None:
        self.missed_at: dict[str, float] = {}
        self._listed: dict[Worker, float] = {}
        self._first_listed: float | None = None
        self._offset: float | None = None  # of the clock from the monotonic one

    def note(
        self, worker: Worker, new: Iterable[str], now: float, *, shows_keys: bool
    ) -> None:
        """Take a listing in.

        Args:
            worker: The worker that made it.
            new: Fingerprints of keys that no worker has shown before.
            now: Seconds since the Unix epoch.
            shows_keys: The listing has at least one key.
        """
        self._follow_clock(now)
        missed_at = self._listed.get(worker, self._first_listed)
        if missed_at is not None:
            self.missed_at.update(dict.fromkeys(new, missed_at))
        if shows_keys:
            if worker not in self._listed:
                self._first_listed = now
            self._listed[worker] = now

    def _follow_clock(self, now: float) -> None:
        """Set the times back by as much as the clock was set back (rule 3)."""
        offset = now - time.monotonic()
        step = 0.0 if self._offset is None else self._offset - offset
        self._offset = offset
        if step < SET_BACK_SECONDS:
            return
        for key in self.missed_at:
            self.missed_at[key] -= step
        for worker in self._listed:
            self._listed[worker] -= step
        if self._first_listed is not None:
            self._first_listed -= step

    def forget(self, fingerprint: str) -> None:
        """Forget a key that is no longer held."""
        self.missed_at.pop(fingerprint, None)

    def forget_lost(self) -> None:
        """Forget the workers that are gone."""
        for worker in [each for each in self._listed if each.lost.is_set()]:
            del self._listed[worker]
