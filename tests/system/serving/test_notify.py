"""What systemd is told by a real server, and what its workers do not know."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
import yaml

from tests.harness.processes import looking_inside, stop
from tests.harness.wait import wait_for


class Manager:
    """Receive what the service manager is told, in order.

    Args:
        path: The socket.
    """

    def __init__(self, path: Path) -> None:
        self.env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"}
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end.bind(str(path))
        self._end.setblocking(False)
        self._told: list[str] = []

    def told(self) -> list[str]:
        """Return everything so far, without times."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message = self._end.recv(4096).decode()
                self._told.append(message.partition("\nMONOTONIC_USEC=")[0])
        return self._told

    def count(self, message: str) -> int:
        """Return how often this was told."""
        return self.told().count(message)

    def close(self) -> None:
        """Stop to listen."""
        self._end.close()


@pytest.fixture
def manager(directory, monkeypatch):
    """A service manager that starts the server of the test."""
    manager = Manager(directory / "notify")
    for name, value in manager.env.items():
        monkeypatch.setenv(name, value)
    yield manager
    manager.close()


def environment(pid):
    """Return the names of the variables that a process was started with."""
    with looking_inside():
        text = Path(f"/proc/{pid}/environ").read_bytes()
    return {each.partition(b"=")[0].decode() for each in text.split(b"\0")}


def test_a_life(make_plugin, hsm, manager):
    """Ready means that the socket serves, whatever the token does; the end is told."""
    plugin = make_plugin(hsm, token={"pin_file": "/nonexistent"})
    plugin.start(spawn=True)
    wait_for(lambda: manager.count("READY=1"))
    assert plugin.socket.exists()
    wait_for(lambda: any("STATUS=starting" in each for each in manager.told()))
    wait_for(lambda: manager.count("WATCHDOG=1") >= 3)
    # Pings that nobody has read yet must not keep the end out of the queue.
    stop(plugin.process.pid)
    manager.told()
    plugin.process.send_signal(signal.SIGTERM)
    os.kill(plugin.process.pid, signal.SIGCONT)
    assert 0 == plugin.wait()

    told = [each for each in manager.told() if each != "WATCHDOG=1"]
    assert told[0] == "READY=1"
    assert told[-1] == "STOPPING=1"


def test_a_reload(make_plugin, hsm, manager):
    """A reload is told from beginning to end, and a rejected file in the status."""
    plugin = make_plugin(hsm)
    plugin.start(spawn=True).wait_healthz("ok")
    wait_for(lambda: manager.count("STATUS=ok"))
    # The first reading of the file has ended, too.
    wait_for(lambda: manager.count("READY=1") == 2)

    plugin.process.send_signal(signal.SIGHUP)
    wait_for(lambda: manager.count("RELOADING=1"))
    wait_for(lambda: manager.count("READY=1") == 3)
    assert 1 == manager.count("RELOADING=1")

    rejected = "STATUS=ok; the configuration file is not in force"
    plugin.write_config(yaml.safe_dump(plugin.config) + "unknown: 1\n")
    wait_for(lambda: manager.count(rejected))
    assert (
        "RELOADING=1"
        == [each for each in manager.told() if each in {"RELOADING=1", "READY=1"}][-2]
    )


def test_workers_cannot_notify(make_plugin, hsm, manager):
    """A worker, and so the module, does not learn how to notify systemd."""
    plugin = make_plugin(hsm)
    plugin.start(spawn=True).wait_healthz("ok")

    assert manager.env.keys() <= environment(plugin.process.pid)
    assert plugin.worker_pids()
    for pid in plugin.worker_pids():
        assert {"PATH"} <= environment(pid)
        assert set() == manager.env.keys() & environment(pid)
