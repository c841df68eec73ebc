"""Workers that the kernel does not let die: counted, named, and never more of them.

The shim lets a tracer hold a worker in its exit, which looks from outside like a driver
that does not return: SIGKILL is delivered, and the process lives on.
"""

from __future__ import annotations

import time

import pytest

from tests.harness.plugin import code_of
from tests.harness.processes import alive, state
from tests.harness.wait import patient, wait_for
from tests.system.faults.observed import QUICK

PLAINTEXT = b"u" * 77  # of a length that no canary has
HANGS = "C_Encrypt len=77 count={} undying hang"
STOP_SECONDS = patient(3.0)
NAMED = "cannot be killed"


@pytest.fixture
def start(make_rig):
    """Start a server with this many workers, of one session each."""

    def start(workers):
        sections = {"workers": workers, "sessions_per_worker": 1}
        rig = make_rig(token=QUICK | sections)
        rig.start()
        rig.well()
        return rig

    return start


def lose(rig, count):
    """Let a call hang in so many workers; return their pids."""
    rig.shim.set(HANGS.format(count))
    most = rig.plugin.workers + 1

    def lost():
        code_of(lambda: rig.plugin.encrypt(PLAINTEXT))
        assert len(rig.worker_pids) <= most
        return len(unkillable(rig)) == count

    wait_for(lost)
    return unkillable(rig)


def unkillable(rig):
    """Return the pids of the workers that cannot be killed, as /status names them."""
    return rig.admin()["workers"]["unkillable"]


def encrypts(rig):
    """Return True if the token encrypts a DEK."""
    return code_of(lambda: rig.plugin.encrypt(b"dek")) == "OK"


def test_one_of_two(start):
    """One such worker keeps its place; the other serves, and `status` names it."""
    rig = start(2)
    (pid,) = lose(rig, 1)
    wait_for(lambda: len(rig.worker_pids) == 2)  # the spare worker has left

    assert "t" == state(pid)
    assert 1 == rig.metrics()["hsm_kms_workers_unkillable"]
    assert 1 == rig.admin()["workers"]["ready"]
    assert encrypts(rig)
    rig.plugin.wait_healthz("ok")
    shown = rig.plugin.cli("status").stdout
    assert f"workers that cannot be killed: process {pid}; " in shown

    rig.shim.clear()
    wait_for(lambda: not unkillable(rig))
    rig.workers()
    assert 0 == rig.metrics()["hsm_kms_workers_unkillable"]
    assert NAMED not in rig.plugin.cli("status").stdout


def test_all_places(start):
    """Without a place left, Status says why; when one has gone, all is well again."""
    rig = start(1)
    both = lose(rig, 2)  # one after the other: the spare worker served meanwhile
    rig.plugin.wait_healthz(NAMED)

    assert "UNAVAILABLE" == code_of(lambda: rig.plugin.encrypt(b"dek"))
    assert all(str(pid) in rig.admin()["detail"] for pid in both)
    assert sorted(both) == sorted(rig.worker_pids)
    rig.shim.clear()
    rig.well()
    assert encrypts(rig)


def test_reload_and_stop(start):
    """A new configuration counts them too, and SIGTERM does not wait for them."""
    rig = start(1)
    (pid,) = lose(rig, 1)
    rig.plugin.config["token"]["call_timeout"] = "1600ms"
    rig.plugin.write_config()  # which is noticed
    wait_for(lambda: rig.plugin.events("the replaced engine has left"))
    wait_for(lambda: encrypts(rig))
    assert [pid] == unkillable(rig)
    assert 2 == len(rig.worker_pids)

    began = time.monotonic()
    rig.plugin.stop()
    assert time.monotonic() - began < STOP_SECONDS
    assert alive(pid)
    rig.shim.clear()
    wait_for(lambda: not alive(pid))
