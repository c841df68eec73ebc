"""Few sessions, dead ones that still count, and workers that had to be killed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hsm_kms.errors import TokenError, UnavailableError
from hsm_kms.token import watchdog
from hsm_kms.token.breaker import TRIP_AFTER
from hsm_kms.token.ends import End
from hsm_kms.token.restarts import Backoff
from tests.harness.one_worker import configure
from tests.harness.plugin import code_of
from tests.harness.served import Served
from tests.harness.wait import patient, wait_for
from tests.system.conformance.clients import stopped
from tests.system.faults.load import Load

SESSION_HANDLE_INVALID = 0xB3
LENT = 4
MANY = 200  # answers
CONTROL = 1
SPENT = "too many workers were killed: continuing with one"


def test_fewer_than_wanted(make_rig, shim):
    """The server uses the sessions that the token opens, even if they are too few."""
    shim.set("max_sessions=8")
    rig = make_rig()
    rig.start()
    rig.well()
    with Load(rig.plugin) as load:
        load.wait_well()
        wait_for(lambda: len(load.answers) > MANY)

    assert [] == [*load.failures(), *load.wrong]
    assert 8 - 2 * CONTROL == rig.metrics()["hsm_kms_sessions"]
    assert 8 == sum(shim.sessions().values())


def test_waiting_is_bounded(make_rig, shim):
    """A request that gets no session within `session_wait` fails, and does not hang."""
    token = {"workers": 1, "sessions_per_worker": 1, "session_wait": "200ms"}
    rig = make_rig(token=token | {"call_timeout": "1m", "hang_timeout": "5m"})
    rig.start()
    rig.well()

    def encrypt():
        return code_of(lambda: rig.plugin.encrypt(b"dek", timeout=patient(60)))

    with ThreadPoolExecutor(5) as pool, stopped(rig.workers()):
        slow = pool.submit(encrypt)
        wait_for(lambda: rig.admin()["sessions"]["idle"] == 0)
        others = [pool.submit(encrypt) for _ in range(4)]
        codes = {other.result() for other in others}

    assert {"RESOURCE_EXHAUSTED"} == codes
    assert "OK" == slow.result()
    rig.plugin.wait_healthz("ok")


def test_kill_budget(make_rig, shim):
    """After three kills one worker with one session goes on until a canary passes."""
    rig = make_rig(token={"call_timeout": "1s", "hang_timeout": "2s"})
    rig.start()
    rig.well()
    shim.set("C_Encrypt hang", "C_Decrypt hang")
    with Load(rig.plugin) as load:
        wait_for(lambda: rig.plugin.events(SPENT))
        wait_for(lambda: len(rig.worker_pids) <= 1)
        time.sleep(2)  # a window in which a second one would start
        wait_for(lambda: len(rig.worker_pids) <= 1)
        shim.clear()
        load.wait_well(time.monotonic())
        rig.well()
        wait_for(lambda: {CONTROL + LENT} == set(shim.sessions().values()))

    assert [] == load.wrong
    wait_for(lambda: set(shim.sessions()) <= set(rig.worker_pids))


def test_failed_starts_are_no_kills(make_rig, shim):
    """Workers that exit because they cannot start do not count as killed."""
    rig = make_rig()
    rig.start()
    rig.well()
    before = shim.calls("C_Initialize")
    shim.set("C_Initialize count=6 rv=0x30", "C_Encrypt count=1 segv")
    code_of(lambda: rig.plugin.encrypt(b"dek"))
    rig.kill_served()
    wait_for(lambda: shim.calls("C_Initialize") >= before + 6 + 2)
    rig.well()

    assert [] == rig.plugin.events(SPENT)


@pytest.fixture
def make(hsm, pin_file, directory, shim, monkeypatch):
    """Make workers on the shim that often try to open one more session."""
    monkeypatch.setattr(watchdog, "GROW_SECONDS", 0.3)

    def make(count):
        return Served(
            *(hsm, pin_file, directory),
            env=hsm.env | shim.env,
            configure=configure(module=str(shim.module)),
            workers=count,
            sessions=LENT,
        )

    return make


async def test_grows(make, shim):
    """The server opens one more session at a time as the token allows more."""
    shim.set(f"max_sessions={CONTROL + 2}")
    async with make(1) as served:
        await served.stocked()
        assert 2 == served.pool.stats().sessions
        shim.set(f"max_sessions={CONTROL + 3}")
        await served.until(lambda: served.pool.stats().sessions == 3)
        shim.clear()
        await served.until(lambda: served.pool.stats().sessions == LENT)
        assert b"dek" == await served.unwrap(await served.wrap(b"dek"))
        assert CONTROL + LENT == sum(shim.sessions().values())


async def test_one_worker_too_many(make, shim, monkeypatch):
    """A worker that finds no room is tried ever more seldom while another serves."""
    asked = []

    def pause(_, error=None, *, beside=False):
        asked.append((type(error), beside))
        return 3600.0

    monkeypatch.setattr(Backoff, "pause", pause)
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 3600)  # it would drop the spare
    shim.set(f"max_sessions={CONTROL + LENT}")
    async with make(1) as served:
        await served.stocked()
        served.workers.start_spare()
        await served.until(lambda: asked)

    assert [(TokenError, True)] == asked


async def test_shrinks(make, shim):
    """A session that cannot be reopened is lent no more; its call is retried."""
    async with make(1) as served:
        await served.stocked()
        for lost in (1, 2):
            wanted = shim.acted("C_EncryptInit") + 1
            shim.set(
                f"C_EncryptInit count=1 rv={SESSION_HANDLE_INVALID:#x}",
                "max_sessions=1",
            )
            assert b"dek" == await served.unwrap(await served.wrap(b"dek"))
            assert wanted == shim.acted("C_EncryptInit")
            assert LENT - lost <= served.pool.stats().sessions
        shim.clear()
        await served.until(lambda: served.pool.stats().sessions == LENT)
        assert CONTROL + LENT == sum(shim.sessions().values())


@pytest.mark.parametrize("rv", [0x05, 0x30, 0x101, 0x8000_0123])
async def test_broken_is_not_full(make, shim, rv):
    """A C_OpenSession that fails though there is room is a fault of the device."""
    async with make(1) as served:
        await served.stocked()
        worker = served.workers.ready[0]
        shim.set(
            f"C_EncryptInit rv={SESSION_HANDLE_INVALID:#x}", f"C_OpenSession rv={rv:#x}"
        )
        for _ in range(TRIP_AFTER):
            with pytest.raises(UnavailableError):
                await served.wrap(b"dek")
        assert LENT == served.pool.stats().sessions
        assert served.pool.breaker.is_open
        assert {"C_OpenSession"} == {fault.function for fault in served.alarm.faults}
        shim.clear()
        served.pool.breaker.close()
        assert b"dek" == await served.unwrap(await served.wrap(b"dek"))
        assert [worker] == served.workers.ready


async def test_initialised_before(make, shim):
    """A module that another library has initialised is used, one call at a time."""
    shim.set("C_Initialize rv=0x191 after")
    async with make(2) as served:
        await served.stocked()
        assert 2 == served.pool.stats().sessions
        assert b"dek" == await served.unwrap(await served.wrap(b"dek"))


async def test_dead_ones_count(make, shim):
    """If sessions of dead workers count, the next worker uses those that are left."""
    most = 2 * (CONTROL + LENT) + CONTROL + 1
    shim.set(f"max_sessions={most} keep_dead")
    async with make(2) as served:
        await served.stocked()
        served.workers.ready[0].retire(End.LOST, "test")
        await served.until(lambda: len(served.workers.ready) == 1)
        await served.stocked()
        assert LENT + 1 == served.pool.stats().sessions
        assert b"dek" == await served.unwrap(await served.wrap(b"dek"))
        shim.forget_sessions()
        await served.until(lambda: served.pool.stats().sessions == 2 * LENT)
