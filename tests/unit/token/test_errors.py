"""Each row of the table of causes, on a pool whose worker reports that cause."""

from __future__ import annotations

import pytest

from hsm_kms.errors import HsmKmsError, TokenError, WorkerLostError
from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.ipc.messages import Decrypt, Encrypt, Encrypted, Failure, FindKeys
from hsm_kms.ipc.values import KeyRef
from hsm_kms.token.breaker import TRIP_AFTER
from hsm_kms.token.ends import End
from hsm_kms.token.errors import (
    BY_REQUEST,
    NOT_OPENED,
    TABLE,
    BreakerEffect,
    SessionEffect,
    error_from,
    may_mean_wrong_pin,
)
from tests.harness.one_worker import Named, unwrapping, wrapping

KEY = Named(KeyRef("kek", b"1"), "f")
REQUESTS = {
    FindKeys: FindKeys(label="kek"),
    Encrypt: wrapping(KEY, b"dek", b"a"),
    Decrypt: unwrapping(KEY, Encrypted(iv=b"i", ciphertext=b"c"), b"a"),
}
DEVICE = Failure(cause=Fault.DEVICE)


def failed(cause, function="C_Function", rv=0x30):
    """Return a failure with this cause, without a hint of its own."""
    return Failure(cause=str(cause), detail="it failed", function=function, rv=rv)


def cases():
    """Return a request, a failure and the row that is to be applied, by a name."""
    plain = REQUESTS[FindKeys]
    found = {str(cause): (plain, failed(cause), row) for cause, row in TABLE.items()}
    for (kind, cause), row in BY_REQUEST.items():
        name = f"{kind.__name__} {cause}"
        found[name] = REQUESTS[kind], failed(cause), row
    unknown = failed("from a later version")
    found["unknown"] = plain, unknown, TABLE[Fault.DEVICE]
    full = failed(Fault.CAPACITY, "C_OpenSession")
    found["C_OpenSession full"] = plain, full, NOT_OPENED
    broken = failed(Fault.DEVICE, "C_OpenSession")
    found["C_OpenSession device"] = plain, broken, TABLE[Cause.SESSION_FAILS]
    return found


CASES = cases()


def rows(which=lambda _: True):
    """Parametrize a test with the cases whose row is of this kind."""
    found = {name: case for name, case in CASES.items() if which(case[2])}
    return pytest.mark.parametrize(
        ("request_", "failure", "row"), found.values(), ids=found
    )


async def answered(rig, request, failure):
    """Send a request, answer it, and return its task and the session that it got."""
    task = rig.send(request)
    task.add_done_callback(lambda ended: ended.exception())  # seen in any case
    await rig.settle()
    (busy,) = rig.busy()
    busy.answer(failure)
    await rig.settle()
    return task, busy


async def finished(rig, task):
    """Answer a second try, if there is one, and return how the request ended."""
    for busy in rig.busy():
        busy.answer()
    await rig.settle()
    return task.exception()


def test_every_cause_has_a_row():
    """The table has a row for each cause that a worker can report, and no other."""
    assert {*Fault, *Cause} == set(TABLE)
    assert {cause for _, cause in BY_REQUEST} <= set(TABLE)


@pytest.mark.parametrize("row", [*TABLE.values(), *BY_REQUEST.values(), NOT_OPENED])
def test_hint(row):
    """A hint is a sentence or absent, never empty."""
    assert row.hint is None or row.hint


@rows()
async def test_error(rig, request_, failure, row):
    """The caller gets the row's error, or the reply of a second try elsewhere."""
    rig.add(2)
    rig.add(2)
    task, first = await answered(rig, request_, failure)
    second = rig.busy()

    assert row.retried == bool(second)
    assert first not in second
    error = rig.alarm.faults[0] if row.retried else task.exception()
    assert row.error is type(error)
    assert ("it failed", row.hint) == (str(error), error.hint)
    assert (failure.function, 0x30) == (error.function, error.rv)
    assert (await finished(rig, task) is None) == row.retried


@rows(lambda row: row.retried)
async def test_retried_once(rig, request_, failure, row):
    """A request whose second try fails as the first did is not tried again."""
    for _ in range(3):
        rig.add(2)
    task, _ = await answered(rig, request_, failure)
    rig.busy()[0].answer(failure)
    await rig.settle()

    assert WorkerLostError is type(task.exception())
    assert [row.error] * 2 == [type(fault) for fault in rig.alarm.faults]
    assert [] == rig.busy()


@rows()
async def test_session(rig, request_, failure, row):
    """The session that reported the failure is lent, withdrawn or retired as said."""
    worker, spare = rig.add(1), rig.add(2)
    rig.pool.withdraw(worker.sessions[0].channel)
    rig.pool.add(worker.sessions[0].channel)  # lent first
    task, session = await answered(rig, request_, failure)
    await finished(rig, task)
    lent = []
    for _ in range(rig.pool.stats().idle):
        rig.send(REQUESTS[FindKeys])
        await rig.settle()
        lent.extend(busy for busy in rig.busy() if busy not in lent)

    assert worker is session.worker
    assert {
        SessionEffect.KEPT: [session, *reversed(spare.sessions)],
        SessionEffect.LENT_LAST: [*reversed(spare.sessions), session],
        SessionEffect.WITHDRAWN: [*reversed(spare.sessions)],
        SessionEffect.RETIRED: [*reversed(spare.sessions)],
    }[row.session] == lent
    retired = row.session is SessionEffect.RETIRED
    assert [End.LOGIN] * retired == worker.retired
    for busy in rig.busy():
        busy.answer()
    await rig.settle()


@rows()
async def test_breaker_counts(rig, request_, failure, row):
    """Failures that blame the token open the breaker, and no others do."""
    rig.add(2)
    for _ in range(TRIP_AFTER):
        if rig.pool.breaker.is_open:
            break
        rig.add(2)
        task, _ = await answered(rig, request_, failure)
        if row.breaker is BreakerEffect.COUNTS:
            for busy in rig.busy():  # the second try, which fails in the same way
                busy.answer(failure)
            await rig.settle()
        await finished(rig, task)

    counts = row.breaker is BreakerEffect.COUNTS
    assert counts == rig.pool.breaker.is_open


@rows(lambda row: row.breaker is not BreakerEffect.COUNTS and not row.retried)
async def test_breaker_resets(rig, request_, failure, row):
    """A failure that shows that the token works begins the count anew."""
    rig.add(2)
    for _ in range(TRIP_AFTER - 1):
        await answered(rig, REQUESTS[FindKeys], DEVICE)
    await answered(rig, request_, failure)
    await answered(rig, REQUESTS[FindKeys], DEVICE)

    resets = row.breaker is BreakerEffect.RESETS
    assert resets != rig.pool.breaker.is_open


@rows()
async def test_reported(rig, request_, failure, row):
    """A failure is reported once if its cause is the token, and else not."""
    rig.add(2)
    rig.add(2)
    task, _ = await answered(rig, request_, failure)
    await finished(rig, task)

    assert [row.error] * row.reported == [type(fault) for fault in rig.alarm.faults]


async def test_the_only_session_is_not_withdrawn(rig):
    """A pool with one session lends it again though C_OpenSession failed on it."""
    rig.add(1)
    failure = failed(Fault.CAPACITY, "C_OpenSession")
    task, _ = await answered(rig, REQUESTS[FindKeys], failure)

    assert TABLE[Fault.CAPACITY].error is type(task.exception())
    assert 1 == rig.pool.stats().idle


@pytest.mark.parametrize(
    ("function", "rv", "may"),
    [
        ("C_Login", ckr.BY_NAME["CKR_FUNCTION_FAILED"], True),
        ("C_Login", 0x8000_0001, True),
        ("C_Login", None, True),
        ("C_Login", ckr.BY_NAME["CKR_DEVICE_ERROR"], False),
        ("C_OpenSession", ckr.BY_NAME["CKR_FUNCTION_FAILED"], False),
        ("", None, False),
    ],
)
def test_may_mean_wrong_pin(function, rv, may):
    """Of C_Login, an error that could mean anything may mean a wrong PIN."""
    assert may == may_mean_wrong_pin(HsmKmsError(function=function, rv=rv))


def test_error_without_a_request():
    """Outside the pool a failure becomes the error of its cause's row."""
    error = error_from(failed("from a later version"))

    assert TokenError is type(error)
    assert TABLE[Fault.DEVICE].hint == error.hint
