"""Say how much one run measures: everything, or a little of everything."""

from __future__ import annotations

from dataclasses import dataclass

GROWING = ((1, 1), (1, 2), (1, 4), (2, 4), (4, 4), (8, 4))
"""More and more sessions, as workers and sessions of each."""
_OTHERS = ((1, 8), (4, 2), (8, 1))  # eight sessions, as (2, 4), in other shapes


MANY_SECRETS = 10_000  # more take minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Bound one run.

    Args:
        name: "whole" or "quick".
        rounds: How often each figure is measured, in turns with all others.
        seconds: How long each rate is measured, in whole seconds.
        latencies: Milliseconds that the shim adds to each C call of the hot path.
        streams: Requests at once.
        cold_rounds: How often each cold start is measured.
        deks: v1 DEKs of a cold start.
        seeds: v2 seeds of a cold start.
        recoveries: How often each recovery is measured.
        sessions: Numbers of sessions, as workers and sessions of each.
        keys: Numbers of keys on the ring.
        clients: Numbers of connections.
        secrets: Numbers of Secrets in a real etcd; empty to leave that out. Above
            `MANY_SECRETS`, each start is measured once.
    """

    name: str
    rounds: int
    seconds: int
    latencies: tuple[float, ...]
    streams: tuple[int, ...]
    cold_rounds: int
    deks: int
    seeds: int
    recoveries: int
    sessions: tuple[tuple[int, int], ...]
    keys: tuple[int, ...]
    clients: tuple[int, ...]
    secrets: tuple[int, ...]


WHOLE = Plan(
    name="whole",
    rounds=3,
    seconds=2,
    latencies=(0, 0.5, 1, 5),
    streams=(1, 16, 64),
    cold_rounds=3,
    deks=10_000,
    seeds=1_000,
    recoveries=5,
    sessions=GROWING + _OTHERS,
    keys=(1, 10, 100),
    clients=(1, 4, 16, 64),
    secrets=(100, 1_000, 10_000, 100_000),
)
QUICK = Plan(
    name="quick",
    rounds=2,
    seconds=1,
    latencies=(0, 1),
    streams=(1, 16),
    cold_rounds=2,
    deks=1_000,
    seeds=100,
    recoveries=2,
    sessions=((1, 1), (1, 4), (4, 4)),
    keys=(1, 10),
    clients=(1, 16),
    secrets=(),
)
