"""A nonce budget with small figures, and what its log says."""

from __future__ import annotations

from hsm_kms.state_dir.directory import StateDir
from hsm_kms.wrapping.nonce_budget import NonceBudget
from tests.unit.keys.key_samples import A

OFTEN = "the key has wrapped often: make another with hsm-kms keys rotate"
NO_MORE = "the key has wrapped as often as is safe: it wraps no more"
IN_MEMORY = "nonces are counted in memory only"
UNKNOWN = "state directory: every key counts as if it had wrapped often"


def budget_on(state, **limits):
    """A budget with small figures."""
    return NonceBudget(
        state, **({"block": 16, "warn_at": 100, "stop_at": 200} | limits)
    )


def spend(budget, number, fingerprint=A, **how):
    for _ in range(number):
        budget.spend(fingerprint, **how)


async def settled(budget):
    """Nothing is being written any more."""
    if budget._reserving is not None:
        await budget._reserving


def kept(state):
    """What the next process would read."""
    return StateDir(state.path).nonces().counts


def events(logs):
    return [log["event"] for log in logs]
