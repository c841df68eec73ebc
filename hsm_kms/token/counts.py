"""What the token's side counts; read by whoever makes metrics of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class End(StrEnum):
    """Why a worker ended."""

    ASKED = "asked"  # the server stops, reloads, or needs it no more
    LOST = "lost"  # it crashed, or was killed from outside
    START = "start"  # it could not start, or not in time
    HANG = "hang"  # one call ran longer than hang_timeout
    CANARY = "canary"  # its canary failed, or it misses a key
    RECYCLED = "recycled"  # a fresh worker sees more keys
    LOGIN = "login"  # it was logged out


@dataclass(slots=True, kw_only=True)
class Counts:
    """Running totals since the start of the process.

    Args:
        calls: Requests sent to the token, by operation.
        errors: Failures it answered with, by CKR name or cause.
        ends: Workers that ended, by `End`.
        created: Local KEKs made, by "ok" and "failed".
    """

    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    created: Counter[str] = field(default_factory=Counter)
