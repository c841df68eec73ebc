"""A nonce budget with low limits, and the events that it logs."""

from __future__ import annotations

from hsm_kms.state_dir.directory import StateDir
from hsm_kms.wrapping.nonce_budget import NonceBudget
from tests.unit.keys.key_samples import A

OFTEN = "key near its limit of wraps: replace it with hsm-kms keys rotate"
NO_MORE = "key at its limit of wraps: replace it with hsm-kms keys rotate"
IN_MEMORY = "wraps are counted in memory only"
UNKNOWN = "state directory: every key counts as near its limit of wraps"


def budget_on(state, **limits):
    """Return a budget with low limits."""
    return NonceBudget(
        state, **({"block": 16, "warn_at": 100, "stop_at": 200} | limits)
    )


def spend(budget, number, fingerprint=A, **how):
    for _ in range(number):
        budget.spend(fingerprint, **how)


async def settled(budget):
    """Wait until nothing is being written any more."""
    if budget._reserving is not None:
        await budget._reserving


def kept(state):
    """Return the counts that the next process would read."""
    return StateDir(state.path).nonces().counts


def events(logs):
    return [log["event"] for log in logs]
