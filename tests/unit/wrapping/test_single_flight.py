"""Shared calls: joining, leaving, and what is remembered."""

from __future__ import annotations

import asyncio
import gc
import math

import pytest

from hsm_kms.errors import (
    CiphertextError,
    TokenAbsentError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.wrapping.record import CIPHERTEXT_SENTENCE
from hsm_kms.wrapping.single_flight import (
    MAX_REMEMBERED,
    REMEMBER_SECONDS,
    SingleFlight,
)
from tests.harness.wait import settle

A, B = b"one record", b"another"


class Token:
    """Unwraps records when the test says so, and notes what it was asked for."""

    def __init__(self):
        self.asked = []
        self.given_up = []
        self.answers = {}

    def opens(self, what):
        """Return a call that unwraps `what`."""

        async def call():
            self.asked.append(what)
            self.answers[what] = asyncio.get_running_loop().create_future()
            try:
                return await self.answers[what]
            except asyncio.CancelledError:
                self.given_up.append(what)
                raise

        return call

    def answer(self, what, result):
        """End the call for `what` with a result or an error."""
        if isinstance(result, Exception):
            self.answers[what].set_exception(result)
        else:
            self.answers[what].set_result(result)


class Desk:
    """Callers of shared calls; the loop's clock stands until the test moves it."""

    def __init__(self, clock):
        self.token = Token()
        self.flights = SingleFlight()
        self.clock = clock

    async def come(self, number=1, what=A, seconds=None):
        """Add callers that each wait for at most `seconds`; return their tasks."""
        until = None if seconds is None else self.clock[0] + seconds
        tasks = [
            asyncio.create_task(
                self.flights.join(what, self.token.opens(what), deadline=until)
            )
            for _ in range(number)
        ]
        await settle()
        return tasks

    async def later(self, seconds):
        """Let time pass."""
        self.clock[0] += seconds
        await settle()

    async def end(self, tasks, result, what=A):
        """End the call; return what each caller got."""
        self.token.answer(what, result)
        await settle()
        return [outcome(task) for task in tasks]


def outcome(task):
    """Return what a caller got, which must be there already."""
    assert task.done()
    if task.cancelled():
        return "cancelled"
    return type(task.exception()) if task.exception() else task.result()


@pytest.fixture
async def desk(monkeypatch):
    """Return a desk without callers."""
    loop = asyncio.get_running_loop()
    now = [float(math.ceil(loop.time()))]  # whole seconds add up exactly
    monkeypatch.setattr(loop, "time", lambda: now[0])
    return Desk(now)


async def test_one_call_for_many(desk):
    """All callers of one record share a call; another record has another call."""
    many, others = await desk.come(200), await desk.come(3, what=B)
    more = await desk.come(50)

    assert [A, B] == desk.token.asked
    assert [b"dek"] * 250 == await desk.end(many + more, b"dek")
    assert [b"other"] * 3 == await desk.end(others, b"other", what=B)


async def test_results_are_not_remembered(desk):
    """A result is not remembered: a later caller starts a new call."""
    await desk.end(await desk.come(), b"dek")
    again = await desk.come()

    assert [A, A] == desk.token.asked
    assert [b"other"] == await desk.end(again, b"other")


@pytest.mark.parametrize("who", [0, 1], ids=["first", "joined"])
@pytest.mark.parametrize("how", ["cancelled", "out of time"])
async def test_leaving_does_not_end_the_call(desk, who, how):
    """A caller that leaves or times out does not end the call of the others."""
    seconds = [60.0, 60.0, None]
    if how == "out of time":
        seconds[who] = 1.0
    tasks = [task for each in seconds for task in await desk.come(seconds=each)]
    if how == "cancelled":
        tasks[who].cancel()
    await desk.later(2)
    gone = tasks.pop(who)

    assert outcome(gone) == ("cancelled" if how == "cancelled" else TokenTimeoutError)
    assert [] == desk.token.given_up
    assert [b"dek"] * 2 == await desk.end(tasks, b"dek")
    assert [A] == desk.token.asked


async def test_last_one_leaving_ends_the_call(desk):
    """The call is cancelled when its last caller leaves, and not before."""
    first, second = await desk.come(2)
    first.cancel()
    await settle()
    before = list(desk.token.given_up)
    second.cancel()
    await settle()

    assert [] == before
    assert [A] == desk.token.given_up


@pytest.mark.parametrize("slow", [False, True])
async def test_after_a_call_that_was_given_up(desk, slow):
    """A caller after a cancelled call gets a new call, even while the old one ends."""
    may_end = asyncio.Event()

    async def old():
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    first = asyncio.create_task(desk.flights.join(A, old, deadline=None))
    await settle()
    first.cancel()
    if not slow:
        may_end.set()
    await settle()
    next_one = await desk.come()
    may_end.set()
    await settle()  # the old call has ended: the new one can still be joined
    joined = await desk.come()

    assert [A] == desk.token.asked
    assert [b"dek"] * 2 == await desk.end(next_one + joined, b"dek")


async def test_failure_reaches_all_and_is_forgotten(desk):
    """An error reaches all callers, and is not remembered."""
    for error in (TokenAbsentError("away"), WorkerLostError("gone")):
        tasks = await desk.come(3)

        assert [type(error)] * 3 == await desk.end(tasks, error)
    assert [b"dek"] == await desk.end(await desk.come(), b"dek")


async def test_not_authentic_is_remembered(desk):
    """A record that is not authentic is refused for five seconds without a call."""
    found = await desk.end(await desk.come(2), CiphertextError(CIPHERTEXT_SENTENCE))
    await desk.later(0.9 * REMEMBER_SECONDS)
    (again,) = await desk.come()
    others = await desk.come(what=B)

    assert [CiphertextError] * 2 == found
    assert CiphertextError == outcome(again)
    assert CIPHERTEXT_SENTENCE == str(again.exception())
    assert [A, B] == desk.token.asked
    assert [b"other"] == await desk.end(others, b"other", what=B)

    await desk.later(0.2 * REMEMBER_SECONDS)
    assert REMEMBER_SECONDS <= 5
    assert [b"dek"] == await desk.end(await desk.come(), b"dek")


async def test_memory_is_bounded(desk):
    """Only the latest refusals are remembered."""
    things = [b"%d" % number for number in range(MAX_REMEMBERED + 1)]
    asked = []

    async def refused(what):
        async def call():
            asked.append(what)
            raise CiphertextError(CIPHERTEXT_SENTENCE)

        with pytest.raises(CiphertextError):
            await desk.flights.join(what, call, deadline=None)

    for what in [*things, *things[1:]]:
        await refused(what)
    most = len(desk.flights._refused)
    await refused(things[0])

    assert [*things, things[0]] == asked
    assert MAX_REMEMBERED == most


async def test_no_report_after_all_left(desk):
    """An error after all callers have left is not reported by the event loop."""
    heard = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context["message"]))

    async def fails():
        try:
            await asyncio.Event().wait()
        finally:
            raise WorkerLostError("it died of it")

    for _ in range(2):
        task = asyncio.create_task(desk.flights.join(A, fails, deadline=None))
        await settle()
        task.cancel()
        await settle()
        del task
        gc.collect()
        await settle()

    assert [] == heard
