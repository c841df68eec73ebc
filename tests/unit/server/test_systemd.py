"""What systemd is told, on a real datagram socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

import pytest

from hsm_kms.health.state import HealthState
from hsm_kms.server.systemd import Systemd, status_text
from tests.harness.wait import patient, until


@contextlib.contextmanager
def manager(address):
    """Receive notifications, as the service manager does."""
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name)
        end.setblocking(False)
        yield end


def received(end):
    """Return the messages that have arrived."""
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(end.recv(4096).decode())
    return messages


@pytest.fixture
def address(directory):
    """The path of the manager's socket."""
    return str(directory / "notify")


def test_ready_and_stopping(address):
    """A server says that it is ready and that it stops, and then nothing of reloads."""
    with manager(address) as end:
        systemd = Systemd.from_environment({"NOTIFY_SOCKET": address})
        systemd.ready()
        systemd.stopping()
        systemd.ready()

        assert ["READY=1", "STOPPING=1"] == received(end)


def test_reloading(address):
    """A reload begins with the time of the monotonic clock, and ends with ready."""
    with manager(address) as end:
        before = time.monotonic_ns() // 1000
        systemd = Systemd(address)
        systemd.reloading()
        systemd.ready()
        reloading, ready = received(end)

    first, _, usec = reloading.partition("\nMONOTONIC_USEC=")
    assert ("RELOADING=1", "READY=1") == (first, ready)
    assert before <= int(usec) <= time.monotonic_ns() // 1000


def test_abstract_socket(directory):
    """An address that begins with @ is the name of an abstract socket."""
    name = f"@hsm-kms{directory}"
    with manager(name) as end:
        Systemd(name).ready()

        assert ["READY=1"] == received(end)


async def test_status_and_watchdog(address):
    """The watchdog is pinged twice in its time, and a status told once."""
    said, all_of_it = ["ok"], []
    with manager(address) as end:
        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000"}
        systemd = Systemd.from_environment(env | {"WATCHDOG_PID": str(os.getpid())})
        running = asyncio.create_task(systemd.run(lambda: said[0]))

        def has(message, count=1):
            all_of_it.extend(received(end))
            return all_of_it.count(message) >= count

        await until(lambda: has("WATCHDOG=1", 3))
        said[0] = "failed: the token is unavailable"
        await until(lambda: has(f"STATUS={said[0]}"))
        await until(lambda: has("WATCHDOG=1", 6))
        running.cancel()

    assert ["STATUS=ok", f"STATUS={said[0]}"] == [
        each for each in all_of_it if each.startswith("STATUS=")
    ]


async def test_watchdog_of_another_process(address):
    """A watchdog that waits for another process is not pinged."""
    with manager(address) as end:
        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}
        running = asyncio.create_task(Systemd.from_environment(env).run(lambda: "ok"))
        await until(lambda: "STATUS=ok" in received(end))
        running.cancel()

        assert [] == received(end)


async def test_nothing_is_lost_in_a_full_queue(address):
    """What a busy manager cannot take is told later; nothing waits for that."""
    with manager(address) as end:
        systemd = Systemd(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.sendto(b"X", address)
        systemd.ready()
        assert "READY=1" not in received(end)
        running = asyncio.create_task(systemd.run(lambda: "ok"))
        got = []

        def has_all():
            got.extend(received(end))
            return got == ["READY=1", "STATUS=ok"]

        await until(has_all)
        running.cancel()


async def test_nobody_wants_to_know():
    """Without a service manager nothing is sent, and the task ends at once."""
    systemd = Systemd.from_environment({})
    systemd.ready()
    systemd.reloading()

    await asyncio.wait_for(systemd.run(lambda: "ok"), patient())


def test_a_manager_that_is_gone(address):
    """A socket that nobody has any more raises nothing."""
    systemd = Systemd(address)
    systemd.ready()
    with manager(address) as end:
        systemd.ready()

        assert ["READY=1"] == received(end)


@pytest.mark.parametrize("usec", ["", "0", "-5", "soon"])
def test_a_watchdog_without_a_time(address, usec):
    """A WATCHDOG_USEC that is no time is no watchdog."""
    systemd = Systemd.from_environment(
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": usec}
    )

    assert systemd.watchdog is None


def test_status_text():
    """`systemctl status` shows what Status says, and if the file is not in force."""
    well = HealthState(state="ok", healthz="ok", key_id="k")
    ill = HealthState(state="failed", healthz="the token is unavailable", key_id="k")

    assert "ok" == status_text(well, in_force=True)
    assert "failed: the token is unavailable" == status_text(ill, in_force=True)
    assert "ok; the configuration file is not in force" == status_text(
        well, in_force=False
    )
