"""Decide which keys may become current after another one, and from when.

A younger key becomes current at its activation time; later if it was first seen late,
and not by itself if this node missed it when its activation time was long past.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.keys.keyring import Pending

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hsm_kms.keys.rotation import Memory
    from hsm_kms.keys.token_key import (
        KeySettings,
        TokenKey,
    )

# A key first seen less than this after its activation time is late: other nodes may
# not have seen it yet, so this one waits before it switches.
LATE_SECONDS: Final = 600.0
LATE_WAIT_SECONDS: Final = 90.0
# A key that was missed longer than this after its activation time was not made when it
# claims, or this clock is ahead: clocks and the replication of an HSM differ by less.
DOUBT_SECONDS: Final = 120.0


def pending_after(
    current: TokenKey,
    keys: Sequence[TokenKey],
    settings: KeySettings,
    memory: Memory,
    now: float,
) -> tuple[Pending, ...]:
    """Return the keys that will become current, the next one first.

    Args:
        current: The current key.
        keys: The keys found, without retired ones.
        settings: The configuration.
        memory: What this node remembers.
        now: Seconds since the Unix epoch.
    """
    if settings.current is not None:
        settings = replace(settings, shared=False)
    coming = coming_after(current, keys, settings, memory, now)
    return tuple(
        sorted(coming, key=lambda each: (each.at is None, each.at or 0, each.key.age))
    )


def coming_after(
    base: TokenKey,
    keys: Sequence[TokenKey],
    settings: KeySettings,
    memory: Memory,
    now: float,
) -> Iterable[Pending]:
    """Yield the keys that may become current after `base`, and from when.

    Args:
        base: The key last current on this node.
        keys: The keys found, without retired ones.
        settings: The configuration.
        memory: What this node remembers.
        now: Seconds since the Unix epoch.
    """
    former = {fingerprint_in(key_id) for key_id in memory.former}
    passed = {*former, base.fingerprint}  # also a copy of it with another CKA_ID
    for key in keys:
        if key.age <= base.age or key.fingerprint in passed:
            continue
        if by_time(key, settings):
            missed_at = memory.missed_at.get(key.fingerprint, -math.inf)
            if not settings.shared:
                yield Pending(key=key, at=None)
            elif missed_at > key.activation + DOUBT_SECONDS:
                yield Pending(key=key, at=None, missed_at=missed_at)
            else:
                yield Pending(key=key, at=_time_of(key, memory, now))


def by_time(key: TokenKey, settings: KeySettings) -> bool:
    """Return True if a key may become current by its activation time alone."""
    return key.born_here and key.activation > 0 and not settings.refuses(key)


def _time_of(key: TokenKey, memory: Memory, now: float) -> float:
    seen = memory.first_seen.get(key.fingerprint, now)
    late = key.activation <= seen < key.activation + LATE_SECONDS
    return seen + LATE_WAIT_SECONDS if late else float(key.activation)
