"""A state directory whose disk hangs, or has no file locks."""

from __future__ import annotations

import http.client
import os
import signal

import pytest

from tests.harness.disk.driver import Disk
from tests.harness.plugin import get
from tests.harness.wait import patient, wait_for
from tests.system.faults.observed import QUICK


@pytest.fixture
def disk(directory):
    """The disk under the state directory of the first server of this test."""
    return Disk(directory.resolve() / "p0/state")


@pytest.fixture
def rig(make_rig, disk, monkeypatch):
    """A server, not started, whose state directory is on `disk`."""
    for name, value in disk.env.items():
        monkeypatch.setenv(name, value)
    return make_rig(token=QUICK)


def livez(rig):
    """Status code of /livez."""
    port = rig.plugin.http_port()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(30))
    return get(connection, "/livez")[0]


def waiting(rig):
    """Temporary files of writes that the disk has not finished."""
    return list(rig.plugin.state_dir.glob(".hsm-kms-*"))


def kill_one(rig, disk):
    """Let the disk hang, and have a worker wait for it: its try must be recorded."""
    first, _ = rig.workers()
    disk.hang()
    (rig.plugin.state_dir / "pin.json").unlink()  # the PIN is not proven any more
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: waiting(rig))


def test_serves_while_the_disk_hangs(rig, disk):
    """Status, Encrypt and /livez are answered while a write waits for the disk.

    A new worker cannot log in meanwhile: its try of the PIN could not be recorded.
    """
    rig.start(spawn=True)
    rig.well()
    kill_one(rig, disk)

    assert "ok" == rig.plugin.healthz()
    assert rig.plugin.encrypt(b"dek").ciphertext
    assert 200 == livez(rig)
    assert waiting(rig)
    disk.release()
    rig.workers()


def test_starts_while_the_disk_hangs(rig, disk):
    """The server listens, and says why it does not log in; then it does by itself."""
    disk.hang()
    rig.start(spawn=True)
    wait_for(
        lambda: "does not answer" in str(rig.plugin.events("state directory problem"))
    )

    assert "UNAVAILABLE" == rig.plugin.healthz()
    assert 200 == livez(rig)
    disk.release()
    rig.well()


def test_stops_while_the_disk_hangs(rig, disk):
    """SIGTERM is obeyed although what should be saved last cannot be saved."""
    rig.start(spawn=True)
    rig.well()
    assert rig.plugin.encrypt(b"dek").ciphertext
    disk.hang()

    assert 0 == rig.plugin.stop()


def test_stops_while_a_login_waits(rig, disk):
    """SIGTERM is obeyed although the try of a PIN still waits for the disk."""
    rig.start(spawn=True)
    rig.well()
    kill_one(rig, disk)

    assert 0 == rig.plugin.stop()


def test_no_locks(rig, disk):
    """On a file system without locks no PIN is tried, and the error names the cause."""
    disk.lose_locks()
    rig.start(spawn=True)
    event = wait_for(lambda: rig.plugin.events("token worker cannot start"))[0]
    check = rig.plugin.cli("check", spawn=True)

    assert "has no file locks" in event["error"]
    assert "use a state_dir on a local file system" in event["error"]
    assert 1 == check.returncode
    assert "has no file locks" in check.stdout
