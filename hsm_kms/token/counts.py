"""What the token's side counts; read by whoever makes metrics of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Counts:
    """Running totals since the start of the process.

    Args:
        calls: Requests sent to the token, by operation.
        errors: Failures it answered with, by CKR name or cause.
        ends: Workers that ended, by `token.ends.End`.
        created: Local KEKs made, by "ok" and "failed".
    """

    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    created: Counter[str] = field(default_factory=Counter)
