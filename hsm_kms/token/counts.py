"""Count what happens on the token's side, for the metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Counts:
    """Keep running totals since the start of the process.

    Args:
        calls: Requests sent to the token, by operation.
        errors: Failures that the token answered with, by CKR name or cause.
        ends: Workers that ended, by `token.ends.End`.
        created: Local KEKs created, by "ok" and "failed".
    """

    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    created: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Count the sessions held, of them idle, and the requests waiting for one."""

    sessions: int
    idle: int
    waiting: int
