"""The nonce budget: counting, reserving ahead, warning and stopping."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hsm_kms.errors import NonceBudgetError
from hsm_kms.state_dir.directory import StateDir
from hsm_kms.state_dir.records import MAX_NONCE_KEYS, MAX_NONCES, NoncesFile
from hsm_kms.wrapping import nonce_budget
from hsm_kms.wrapping.nonce_budget import BLOCK, STOP_AT, WARN_AT, NonceBudget
from tests.harness.examples import examples
from tests.harness.wait import patient, until
from tests.unit.keys.key_samples import A, B, C
from tests.unit.wrapping.nonce_rig import (
    NO_MORE,
    OFTEN,
    budget_on,
    events,
    kept,
    settled,
    spend,
)


@pytest.fixture
def state(tmp_path):
    """Return a new state directory."""
    return StateDir(tmp_path / "state").open()


def test_defaults():
    """By default eight nodes together stay within 2^32 wraps."""
    assert (2**14, 2**28, 2**29) == (BLOCK, WARN_AT, STOP_AT)
    assert MAX_NONCES == 8 * STOP_AT


async def test_given_back(state):
    """After an orderly end the file holds the exact counts."""
    first = budget_on(state)
    spend(first, 21)
    spend(first, 5, B)
    await first.close()
    assert {A: 21, B: 5} == kept(state)
    again = budget_on(state)
    assert {A: 21, B: 5} == again.used
    spend(again, 1)
    assert {A: 22, B: 5} == again.used
    await again.close()

    assert {A: 22, B: 5} == kept(state)


async def test_nothing_spent(state):
    """A process that wraps nothing writes no file."""
    await budget_on(state).close()

    assert [] == list(state.path.iterdir())


async def test_reserved_ahead(state):
    """The next block is reserved when half of the last one is used."""
    budget = budget_on(state)
    spend(budget, 1)
    await settled(budget)
    assert {A: 17} == kept(state)
    spend(budget, 8)
    await settled(budget)
    assert {A: 17} == kept(state)
    spend(budget, 1)
    await settled(budget)

    assert {A: 10 + 16} == kept(state)


class SlowDisk(StateDir):
    """A state directory on a slow disk."""

    def __init__(self, path):
        super().__init__(path)
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def save_nonces(self, file):
        self.begun.set()
        assert self.go_on.wait(patient())
        super().save_nonces(file)


async def test_slow_disk(tmp_path):
    """No attempt to wrap waits for the disk."""
    state = SlowDisk(tmp_path / "state").open()
    budget = budget_on(state)
    spend(budget, 1)
    await until(state.begun.is_set)
    spend(budget, 90)
    spend(budget, 3, B)
    assert {} == kept(state)
    assert {A: 91, B: 3} == budget.used
    state.go_on.set()
    await settled(budget)

    assert {A: 91 + 16, B: 3 + 16} == kept(state)


async def test_closed_while_writing(tmp_path):
    """An orderly end waits for the write under way, and writes last."""
    state = SlowDisk(tmp_path / "state").open()
    budget = budget_on(state)
    spend(budget, 30)
    await until(state.begun.is_set)
    closing = asyncio.create_task(budget.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    state.go_on.set()
    await closing
    assert {A: 30} == kept(state)
    spend(budget, 1)

    assert 31 == budget.used[A]
    assert budget._reserving is None


async def test_warning(state):
    """The warning is logged once per process, at the attempt that reaches the limit."""
    budget = budget_on(state)
    with capture_logs() as logs:
        spend(budget, 99)
        spend(budget, 99, B)
        assert not budget.is_low(A)
        assert [] == logs
        spend(budget, 1)
        assert budget.is_low(A)
        spend(budget, 50)
        await settled(budget)
    assert [OFTEN] == events(logs)
    assert (A, 100, "warning") == tuple(
        logs[0][field] for field in ("fingerprint", "wraps", "log_level")
    )
    assert not budget.is_low(B)
    await budget.close()
    with capture_logs() as logs:
        later = budget_on(state)
        assert [] == logs
        spend(later, 10)
        await later.close()

    assert [OFTEN] == events(logs)


async def test_stop(state):
    """At the stop an attempt is refused and not counted; a canary is counted."""
    budget = budget_on(state)
    with capture_logs() as logs:
        spend(budget, 200)
        for _ in range(3):
            with pytest.raises(NonceBudgetError, match="has wrapped 200 times"):
                budget.spend(A)
        assert {A: 200} == budget.used
        assert budget.is_spent(A)
        spend(budget, 30, refuse=False)
        assert {A: 230} == budget.used
        await budget.close()
    assert [OFTEN, NO_MORE] == events(logs)
    assert {A: 230} == kept(state)
    with capture_logs() as logs:
        later = budget_on(state)
        with pytest.raises(NonceBudgetError):
            later.spend(A)
        spend(later, 1, B)
        await later.close()

    assert [NO_MORE] == events(logs)


async def test_beyond_all_bounds(state):
    """The file holds at most 2^32, and counting goes on beyond it."""
    state.save_nonces(NoncesFile(version=1, counts={A: MAX_NONCES}, others=0))
    budget = NonceBudget(state)
    with capture_logs():
        spend(budget, 3 * BLOCK, refuse=False)
        await settled(budget)
        assert MAX_NONCES + 3 * BLOCK == budget.used[A]
        await budget.close()

    assert {A: MAX_NONCES} == kept(state)


def fingerprint(number):
    """Return one of many fingerprints."""
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return "".join(letters[number >> shift & 31] for shift in (0, 5, 10)) + "k" * 23


async def test_many_keys(state):
    """The keys with the lowest counts are evicted, and still count as used."""
    counts = {fingerprint(number): number for number in range(MAX_NONCE_KEYS)}
    state.save_nonces(NoncesFile(version=1, counts=counts, others=0))
    budget = budget_on(state, warn_at=10_000, stop_at=20_000)
    spend(budget, 5)
    spend(budget, 1, B)
    spend(budget, 1, fingerprint(0))
    await budget.close()
    file = state.nonces()

    assert MAX_NONCE_KEYS == len(file.counts)
    assert {fingerprint(1), fingerprint(2)} == counts.keys() - file.counts.keys()
    assert (5, 1, 1) == tuple(file.counts[key] for key in (A, B, fingerprint(0)))
    assert 2 == file.others
    later = budget_on(state)
    spend(later, 1, fingerprint(1))
    assert 3 == later.used[fingerprint(1)]
    await later.close()


async def test_more_keys_than_fit(state, monkeypatch):
    """Keys in use that do not fit into the file still count in full."""
    monkeypatch.setattr(nonce_budget, "MAX_NONCE_KEYS", 2)
    budget = budget_on(state)
    for number, key in ((3, A), (1, B), (2, C)):
        spend(budget, number, key)
        await settled(budget)
    await budget.close()
    assert {A: 3, B: 1, C: 2} == budget.used
    file = state.nonces()

    assert {A: 3, C: 2} == file.counts
    assert file.others >= 1


async def test_two_engines(state):
    """Two engines with one budget count together."""
    budget = budget_on(state)

    async def engine():
        for _ in range(40):
            budget.spend(A)
            await asyncio.sleep(0)

    await asyncio.gather(engine(), engine())
    await budget.close()

    assert {A: 80} == kept(state)


async def test_is_cheap(state):
    """Counting takes microseconds, even while reservations are written."""
    budget = NonceBudget(state)
    began = time.thread_time()
    spend(budget, 100_000)
    seconds = time.thread_time() - began
    await budget.close()

    assert seconds < 100_000 * 10e-6


steps = st.lists(
    st.tuples(
        st.sampled_from([A, B]),
        st.integers(min_value=1, max_value=40),
        st.sampled_from(["go on", "let it write", "close", "crash"]),
    ),
    max_size=12,
)


@settings(max_examples=examples(30, 300))
@given(steps)
def test_never_too_few(steps):
    """However processes end, no attempt is forgotten; a crash adds at most a block."""

    async def run(state):
        spent, crashes = {A: 0, B: 0}, 0
        budget = budget_on(state, warn_at=10**6, stop_at=10**6)
        for key, number, then in steps:
            spend(budget, number, key)
            spent[key] += number
            if then == "go on":
                continue
            if then == "close":
                await budget.close()
            else:
                await settled(budget)
                crashes += then == "crash"
            if then != "let it write":
                budget = budget_on(state, warn_at=10**6, stop_at=10**6)
            for name, known in spent.items():
                assert known <= budget.used.get(name, 0) <= known + 16 * crashes
        await budget.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(StateDir(Path(directory)).open()))
