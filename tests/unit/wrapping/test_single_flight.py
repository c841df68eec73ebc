"""One call for all who want the same thing: who waits, who leaves, what is kept."""

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
    """Opens things when the test says so, and counts how often it was asked."""

    def __init__(self):
        self.asked = []
        self.given_up = []
        self.answers = {}

    def opens(self, what):
        """The call that opens it."""

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
        """It was opened, or not."""
        if isinstance(result, Exception):
            self.answers[what].set_exception(result)
        else:
            self.answers[what].set_result(result)


class Desk:
    """Where callers come and go; the loop's clock stands until the test moves it."""

    def __init__(self, clock):
        self.token = Token()
        self.flights = SingleFlight()
        self.clock = clock

    async def come(self, number=1, what=A, seconds=None):
        """So many callers, each with so much patience."""
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
        """Time passes."""
        self.clock[0] += seconds
        await settle()

    async def end(self, tasks, result, what=A):
        """The call ends; what each of the callers got."""
        self.token.answer(what, result)
        await settle()
        return [outcome(task) for task in tasks]


def outcome(task):
    """What a caller got; he need not wait for it."""
    assert task.done()
    if task.cancelled():
        return "cancelled"
    return type(task.exception()) if task.exception() else task.result()


@pytest.fixture
async def desk(monkeypatch):
    """A desk that nobody has come to yet."""
    loop = asyncio.get_running_loop()
    now = [float(math.ceil(loop.time()))]  # whole seconds add up exactly
    monkeypatch.setattr(loop, "time", lambda: now[0])
    return Desk(now)


async def test_one_call_for_many(desk):
    """All who come before the answer get it from one call, each thing from its own."""
    many, others = await desk.come(200), await desk.come(3, what=B)
    more = await desk.come(50)

    assert [A, B] == desk.token.asked
    assert [b"dek"] * 250 == await desk.end(many + more, b"dek")
    assert [b"other"] * 3 == await desk.end(others, b"other", what=B)


async def test_what_is_done_is_not_kept(desk):
    """What was opened is not remembered: who comes later has it opened anew."""
    await desk.end(await desk.come(), b"dek")
    again = await desk.come()

    assert [A, A] == desk.token.asked
    assert [b"other"] == await desk.end(again, b"other")


@pytest.mark.parametrize("who", [0, 1], ids=["who came first", "who joined"])
@pytest.mark.parametrize("how", ["cancelled", "out of time"])
async def test_who_leaves_takes_nobody_along(desk, who, how):
    """One goes away or has no more time: the call goes on, and the others get it."""
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
    """Nobody wants it any more: the call is given up, when the last one goes."""
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
    """Who comes next gets a call of his own, also while the old one still ends."""
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
    await settle()  # the old one has ended: the new one is still the one to join
    joined = await desk.come()

    assert [A] == desk.token.asked
    assert [b"dek"] * 2 == await desk.end(next_one + joined, b"dek")


async def test_failure_reaches_all_and_is_forgotten(desk):
    """A token that fails fails all who wait; the next one asks it again."""
    for error in (TokenAbsentError("away"), WorkerLostError("gone")):
        tasks = await desk.come(3)

        assert [type(error)] * 3 == await desk.end(tasks, error)
    assert [b"dek"] == await desk.end(await desk.come(), b"dek")


async def test_not_authentic_is_remembered(desk):
    """For five seconds it is refused without a call, and nothing else is."""
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
    """However many are refused, only so many are remembered: the latest ones."""
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


async def test_nobody_is_told_of_what_nobody_wants(desk):
    """A call that fails after all have left leaves no noise behind."""
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
