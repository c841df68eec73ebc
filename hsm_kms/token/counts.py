"""Count what happens on the token's side, for the metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hsm_kms.ipc.functions import FUNCTIONS

if TYPE_CHECKING:
    from hsm_kms.ipc.functions import Spent

_KNOWN = frozenset(FUNCTIONS)


class FunctionCounts:
    """Add up the calls of each function of the module, and the seconds in them.

    Attributes:
        calls: Calls that have returned, by name of the function.
        seconds: Seconds inside the function, by its name.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, spent: Spent) -> None:
        """Add what a worker reports; the name of a function becomes a label."""
        for name, (calls, seconds) in spent.items():
            if name in _KNOWN:
                self.calls[name] += calls
                self.seconds[name] += seconds


@dataclass(slots=True, kw_only=True)
class Counts:
    """Keep running totals since the start of the process.

    Args:
        calls: Requests sent to the token, by operation.
        errors: Failures that the token answered with, by CKR name or cause.
        ends: Workers that ended, by `token.ends.End`.
        created: Local KEKs created, by "ok" and "failed".
        logins: Logins of workers, by "ok", "rejected" and "failed".
        waits: Requests that had to wait for a session, and got one.
        wait_seconds: Seconds that these have waited.
        breaker_openings: How often requests began to fail without asking the token.
        functions: Calls of each function of the module.
    """

    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    created: Counter[str] = field(default_factory=Counter)
    logins: Counter[str] = field(default_factory=Counter)
    waits: int = 0
    wait_seconds: float = 0.0
    breaker_openings: int = 0
    functions: FunctionCounts = field(default_factory=FunctionCounts)

    def waited(self, seconds: float) -> None:
        """Count a request that has waited for a session."""
        self.waits += 1
        self.wait_seconds += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Count the sessions held, of them idle, and the requests waiting for one."""

    sessions: int
    idle: int
    waiting: int
