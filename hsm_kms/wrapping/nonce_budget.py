"""Count how often this node has wrapped by AES-GCM under each KEK, and stop in time.

1. NIST SP 800-38D section 8.3 allows 2^32 wraps under one key. Nodes do not see each
   other's counts: each warns at 2^28 and stops at 2^29, so eight nodes are safe.
2. Every attempt counts, even if it failed, because its IV may have been used.
3. Counts are reserved ahead in the state directory, a block at a time, in the
   background: a crash costs at most a block, and no request waits for a disk.
4. While the state directory cannot be written to, counts are kept in memory.
5. A key whose count is not known counts as a key near its limit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from hsm_kms.errors import NonceBudgetError
from hsm_kms.ipc.values import Cipher
from hsm_kms.log import get_logger
from hsm_kms.state_dir.records import MAX_NONCE_KEYS, MAX_NONCES, NoncesFile
from hsm_kms.state_dir.store import (
    StateCorruptError,
    StateWriteError,
)

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
    """Hold the counts of one key that this process wraps under.

    Args:
        used: The count now.
        reserved: The count in the state directory.
        log_at: The next count that is logged.
    """

    used: int
    reserved: int
    log_at: float


class NonceBudget:
    """Count the wraps of all engines of one server.

    All methods run on the event loop but `used`, which any thread may read.

    Args:
        state_dir: Keeps the counts when the process ends; of one server alone.
        block: Number of attempts that are reserved at a time.
        warn_at: Count from which a key should be replaced.
        stop_at: Count from which a key wraps no more.
        retry: Seconds until a failed reservation is tried again.
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
        """Return the counts by fingerprint, also of keys of earlier processes."""
        used = {key: count.used for key, count in self._counts.items()}
        return {**self._file.counts, **used}

    def is_low(self, fingerprint: str) -> bool:
        """Return True if the key should be replaced."""
        return self._used(fingerprint) >= self._warn_at

    def is_spent(self, fingerprint: str) -> bool:
        """Return True if the key must not wrap any more."""
        return self._used(fingerprint) >= self._stop_at

    def spend(self, fingerprint: str, *, refuse: bool = True) -> None:
        """Count one attempt to wrap.

        A crash forgets the attempts of the first milliseconds of a process, before its
        first reservation is on disk.

        Args:
            fingerprint: Names the KEK, 26 characters.
            refuse: Raise an error if the budget is spent; a canary is counted instead.

        Raises:
            NonceBudgetError: The budget is spent; nothing was counted.
        """
        count = self._counts.get(fingerprint) or self._begin(fingerprint)
        if refuse and count.used >= self._stop_at:
            raise NonceBudgetError(
                f"this node has wrapped {count.used} times under the current key",
                hint="replace it with `hsm-kms keys rotate`",
            )
        count.used += 1
        if count.used >= count.log_at:
            self._log_limit(fingerprint, count)
        if self._reserving is None and self._is_short(count):
            self._reserve_soon()

    async def close(self) -> None:
        """Save the exact counts; nothing may wrap any more when this is called."""
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
        count = _Count(used=used, reserved=used, log_at=self._warn_at)
        self._counts[fingerprint] = count
        if used >= self._warn_at:
            self._log_limit(fingerprint, count)
        return count

    def _log_limit(self, fingerprint: str, count: _Count) -> None:
        if count.used < self._stop_at:
            count.log_at = self._stop_at
            _log.warning(
                "key near its limit of wraps: replace it with hsm-kms keys rotate",
                fingerprint=fingerprint,
                wraps=count.used,
                limit=self._stop_at,
            )
        else:
            count.log_at = math.inf
            _log.error(
                "key at its limit of wraps: replace it with hsm-kms keys rotate",
                fingerprint=fingerprint,
                wraps=count.used,
            )

    def _is_short(self, count: _Count) -> bool:
        return count.reserved - count.used < self._block // 2

    def _reserve_soon(self) -> None:
        if not self._closing.is_set():
            self._reserving = asyncio.create_task(self._reserve())

    async def _reserve(self) -> None:
        """Reserve ahead for every key that is short; retry until that works."""
        try:
            while not self._closing.is_set() and any(
                self._is_short(count) for count in self._counts.values()
            ):
                if not await self._save(self._block):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._retry):
                            await self._closing.wait()
        finally:
            # No await since the last look at the counts: a `spend` from now on sees
            # None and starts another task.
            self._reserving = None

    async def _save(self, ahead: int) -> bool:
        """Save the counts, and `ahead` more of each key; return True if that worked."""
        planned = {key: count.used + ahead for key, count in self._counts.items()}
        try:
            self._file, more = await self._state_dir.background(
                partial(self._replace, planned)
            )
        except StateWriteError as error:
            if error.sentence != self._unsaved:
                _log.warning("wraps are counted in memory only", error=error.sentence)
            self._unsaved = error.sentence
            return False
        except Exception as error:  # noqa: BLE001 - a bug must not end the counting
            _log.error("bug while wraps were reserved", exc_info=error)
            return False
        # No await from here to the end: nothing is counted between the two loops.
        self._unsaved = None
        for key, number in more.items():
            if key in self._counts:
                self._counts[key].used += number
        for key, number in planned.items():
            self._counts[key].reserved = number + more.get(key, 0)
        return True

    def _replace(self, planned: _Counts) -> tuple[NoncesFile, _Counts]:
        """Replace the file; runs in a thread.

        Args:
            planned: The counts to save, by fingerprint.

        Returns:
            The new content of the file; and by how much the old content exceeded what
            this process had read or written, as when the state directory was mounted
            only later. That counts, too.
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
            return self._file  # the file is damaged: this process knows more
        # An attempt to write may fail after it took effect.
        return self._file if found == self._tried else found

    def _remembered(self) -> NoncesFile:
        try:
            return self._state_dir.nonces()
        except StateCorruptError as error:
            _log.warning(
                "state directory: every key counts as near its limit of wraps",
                error=error.sentence,
                wraps=self._warn_at,
            )
            return NoncesFile(version=1, counts={}, others=self._warn_at)


def _bounded(counts: _Counts, used_here: AbstractSet[str], others: int) -> NoncesFile:
    """Return what fits into the file: at most `MAX_NONCE_KEYS` keys.

    The keys with the lowest counts that this process does not use are evicted. From
    then on, a key that is not in the file counts as the highest evicted one.

    Args:
        counts: All counts, by fingerprint.
        used_here: Fingerprints of the keys that this process uses.
        others: Count of a key that is not in the file so far.
    """
    order = sorted(counts, key=lambda key: (key not in used_here, -counts[key]))
    gone = [counts[key] for key in order[MAX_NONCE_KEYS:]]
    return NoncesFile(
        version=1,
        counts={key: min(counts[key], MAX_NONCES) for key in order[:MAX_NONCE_KEYS]},
        others=min(max([others, *gone]), MAX_NONCES),
    )
