"""Clients are found among this process's own connections, and recorded."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import pytest

from hsm_kms.audit.stream import AuditStream
from hsm_kms.server.clients import LEAST_SECONDS, Clients
from tests.harness.wait import until
from tests.unit.audit.audit_rig import audit_path, event, lines, to


@pytest.fixture
def path(directory):
    """The audit file."""
    return audit_path(directory)


@pytest.fixture
def listener(directory):
    """A socket as that of the plugin."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(directory / "kms.sock"))
        made.listen()
        yield made


@pytest.fixture
def connect(listener):
    """Connect a client, and accept its connection."""
    opened = []

    def connected():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listener.getsockname())
            opened.append(listener.accept()[0])

    yield connected
    for each in opened:
        each.close()


@pytest.mark.parametrize("how", ["record", "wrote"])
async def test_clients_come_before_their_requests(directory, path, connect, how):
    """Who is connected is recorded before what may have come through the connection."""
    audit = AuditStream(to(path))
    clients = Clients(directory / "kms.sock", audit)
    connect()
    if how == "record":
        clients.record(event())
    else:
        await clients.wrote(event())
    await audit.close()
    client, request = lines(path)

    assert ("client", "connected") == (client["event"], client["state"])
    assert (os.getpid(), os.getuid(), os.getgid()) == (
        client["client_pid"],
        client["client_uid"],
        client["client_gid"],
    )
    assert "pin" == request["event"]


async def test_the_listener_is_no_client(directory, path, listener):
    """The socket on which clients are accepted is not taken for one of them."""
    audit = AuditStream(to(path))
    Clients(directory / "kms.sock", audit).record(event())
    await audit.close()

    assert ["pin"] == [each["event"] for each in lines(path)]


async def test_no_free_descriptor(directory, path, connect):
    """While no descriptor is free, requests are recorded, and no client is gone."""
    audit = AuditStream(to(path))
    clients = Clients(directory / "kms.sock", audit)
    connect()
    clients.record(event(1))
    await until(lambda: path.exists() and len(lines(path)) > 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        await asyncio.sleep(LEAST_SECONDS)
        clients.record(event(2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await asyncio.sleep(LEAST_SECONDS)
    clients.record(event(3))
    await audit.close()

    assert ["client", "pin", "pin", "pin"] == [each["event"] for each in lines(path)]
