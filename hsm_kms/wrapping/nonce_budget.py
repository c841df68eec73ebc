"""How often this node has wrapped under each KEK with an IV of its own making.

1. Random IVs of 96 bits are safe for 2^32 wraps under one key. Nodes do not see each
   other's counts: each warns at 2^28 and stops at 2^29, which makes eight of them safe.
2. Every attempt counts, whatever became of it: its IV may have been used.
3. Counts are reserved ahead in the state directory, a block at a time, in the
   background: a crash costs a block at most, and no request waits for a disk.
4. While the directory cannot be written, counting goes on in memory.
5. What is not known counts as much, not as nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from hsm_kms.errors import NonceBudgetError
from hsm_kms.ipc.values import Cipher
from hsm_kms.log import get_logger
from hsm_kms.state_dir.directory import StateCorruptError, StateWriteError
from hsm_kms.state_dir.records import MAX_NONCE_KEYS, MAX_NONCES, NoncesFile

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from hsm_kms.state_dir.directory import StateDir

BLOCK: Final = 2**14
WARN_AT: Final = 2**28
STOP_AT: Final = 2**29

_RETRY_SECONDS: Final = 30.0

_Counts: TypeAlias = Mapping[str, int]

_log = get_logger(__name__)


def counts(cipher: Cipher) -> bool:
    """Return True if wraps by `cipher` count: those by AES-GCM, whoever makes the IV.

    docs/spec.md, "How often a key may wrap", says why.

    Args:
        cipher: The cipher of the key's records.
    """
    return cipher is Cipher.GCM


@dataclass(slots=True)
class _Count:
    """One key that this process wraps under.

    Args:
        used: What counts by now.
        reserved: What the state directory says.
        tell_at: The next count that somebody must hear of.
    """

    used: int
    reserved: int
    tell_at: float


class NonceBudget:
    """Counts for all engines of one server, on the event loop.

    Args:
        state_dir: Where the counts outlive the process. One server at a time uses it.
        block: How many attempts are reserved at a time.
        warn_at: Count from which a key should be replaced.
        stop_at: Count from which nothing more is wrapped under it.
        retry: Seconds until a reservation that failed is tried again.
    """

    def __init__(
        self,
        state_dir: StateDir,
        *,
        block: int = BLOCK,
        warn_at: int = WARN_AT,
        stop_at: int = STOP_AT,
        retry: float = _RETRY_SECONDS,
    ) -> None:
        self._state_dir = state_dir
        self._block = block
        self._warn_at = warn_at
        self._stop_at = stop_at
        self._retry = retry
        self._counts: dict[str, _Count] = {}
        self._file = self._remembered()
        self._tried: NoncesFile | None = None
        self._unsaved: str | None = None  # why the counts are not in the directory
        self._reserving: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    @property
    def used(self) -> dict[str, int]:
        """What counts, by fingerprint; keys of earlier processes are there too."""
        # Also read by the thread that serves metrics: a copy is made in one step.
        counts = self._counts.copy()
        return {**self._file.counts, **{key: c.used for key, c in counts.items()}}

    def is_low(self, fingerprint: str) -> bool:
        """Whether this key should be replaced."""
        return self._used(fingerprint) >= self._warn_at

    def is_spent(self, fingerprint: str) -> bool:
        """Whether nothing more is wrapped under this key."""
        return self._used(fingerprint) >= self._stop_at

    def spend(self, fingerprint: str, *, refuse: bool = True) -> None:
        """Count one attempt to wrap.

        What came before the first reservation reached the disk, some milliseconds
        after the first attempt of this process, would be forgotten in a crash.

        Args:
            fingerprint: Names the KEK, 26 characters.
            refuse: Raise where the budget is spent; a canary goes on, and counts.

        Raises:
            NonceBudgetError: It is spent; nothing was counted.
        """
        count = self._counts.get(fingerprint) or self._begin(fingerprint)
        if refuse and count.used >= self._stop_at:
            raise NonceBudgetError(
                f"this node has wrapped {count.used} times under the current key",
                hint="make another with `hsm-kms keys rotate`",
            )
        count.used += 1
        if count.used >= count.tell_at:
            self._tell(fingerprint, count)
        if self._reserving is None and self._is_short(count):
            self._reserve_soon()

    async def close(self) -> None:
        """Give back what was reserved and not used; call it when nothing wraps more."""
        self._closing.set()
        if self._reserving is not None:
            await self._reserving
        if self._counts:
            await self._save(0)

    def _used(self, fingerprint: str) -> int:
        count = self._counts.get(fingerprint)
        if count is not None:
            return count.used
        return self._file.counts.get(fingerprint, self._file.others)

    def _begin(self, fingerprint: str) -> _Count:
        used = self._used(fingerprint)
        count = _Count(used=used, reserved=used, tell_at=self._warn_at)
        self._counts[fingerprint] = count
        if used >= self._warn_at:
            self._tell(fingerprint, count)
        return count

    def _tell(self, fingerprint: str, count: _Count) -> None:
        if count.used < self._stop_at:
            count.tell_at = self._stop_at
            _log.warning(
                "the key has wrapped often: make another with hsm-kms keys rotate",
                fingerprint=fingerprint,
                wraps=count.used,
                limit=self._stop_at,
            )
        else:
            count.tell_at = math.inf
            _log.error(
                "the key has wrapped as often as is safe: it wraps no more",
                fingerprint=fingerprint,
                wraps=count.used,
            )

    def _is_short(self, count: _Count) -> bool:
        return count.reserved - count.used < self._block // 2

    def _reserve_soon(self) -> None:
        if not self._closing.is_set():
            self._reserving = asyncio.create_task(self._reserve())

    async def _reserve(self) -> None:
        """Reserve until all is well; where that fails, again and again."""
        try:
            while not self._closing.is_set() and any(
                self._is_short(count) for count in self._counts.values()
            ):
                if not await self._save(self._block):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._retry):
                            await self._closing.wait()
        finally:
            self._reserving = None

    async def _save(self, ahead: int) -> bool:
        """Write down what is used and this much more; whether it worked."""
        planned = {key: count.used + ahead for key, count in self._counts.items()}
        try:
            self._file, more = await asyncio.to_thread(self._replace, planned)
        except StateWriteError as error:
            if error.sentence != self._unsaved:
                _log.warning("nonces are counted in memory only", error=error.sentence)
            self._unsaved = error.sentence
            return False
        except Exception as error:  # noqa: BLE001 - a bug must not end the counting
            _log.error("bug while nonces were reserved", exc_info=error)
            return False
        self._unsaved = None
        for key, number in more.items():
            if key in self._counts:
                self._counts[key].used += number
        for key, number in planned.items():
            self._counts[key].reserved = number + more.get(key, 0)
        return True

    def _replace(self, planned: _Counts) -> tuple[NoncesFile, _Counts]:
        """In a thread: replace the file.

        Returns:
            What is in it now; and what was in it beyond what was read from it or
            written to it here before, as when it was not mounted yet: that counts, too.
        """
        known = self._file.counts
        found = self._found()
        more = {
            key: number - known.get(key, 0)
            for key, number in found.counts.items()
            if number > known.get(key, 0)
        }
        counts = {**known, **planned}
        for key, number in more.items():
            counts[key] = counts.get(key, 0) + number
        others = max(self._file.others, found.others)
        self._tried = _bounded(counts, planned.keys(), others)
        self._state_dir.save_nonces(self._tried)
        return self._tried, more

    def _found(self) -> NoncesFile:
        try:
            found = self._state_dir.nonces()
        except StateCorruptError:
            return self._file  # more is known here than there
        # An attempt to write may have failed only after it took effect.
        return self._file if found == self._tried else found

    def _remembered(self) -> NoncesFile:
        try:
            return self._state_dir.nonces()
        except StateCorruptError as error:
            _log.warning(
                "state directory: every key counts as if it had wrapped often",
                error=error.sentence,
                wraps=self._warn_at,
            )
            return NoncesFile(version=1, counts={}, others=self._warn_at)


def _bounded(counts: _Counts, used_here: AbstractSet[str], others: int) -> NoncesFile:
    """What fits the file: of the keys not used here, those with the least counts go.

    Nothing is forgotten on the unsafe side: from then on, a key that is not in the
    file counts like the one with the most that went.
    """
    order = sorted(counts, key=lambda key: (key not in used_here, -counts[key]))
    gone = [counts[key] for key in order[MAX_NONCE_KEYS:]]
    return NoncesFile(
        version=1,
        counts={key: min(counts[key], MAX_NONCES) for key in order[:MAX_NONCE_KEYS]},
        others=min(max([others, *gone]), MAX_NONCES),
    )
