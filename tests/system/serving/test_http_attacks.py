"""What anybody on the node can do to the HTTP port, and what it costs the server."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import signal
import socket
from pathlib import Path

import pytest

from tests.harness.plugin import get
from tests.harness.wait import patient, wait_for

DESCRIPTORS = 256
MIB = 1024 * 1024


def rss(plugin):
    """Resident memory of the server in bytes."""
    pages = Path(f"/proc/{plugin.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def livez(plugin):
    """Status code of /livez on the TCP port."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", plugin.http_port(), timeout=patient()
    )
    return get(connection, "/livez")[0]


def answers(plugin):
    """Return True if /livez is 200; False if a newer connection took its place."""
    try:
        return 200 == livez(plugin)
    except ConnectionError:
        return False


@pytest.fixture
def attacked(make_plugin, hsm):
    """A healthy server with few descriptors, and a function that connects to it."""
    plugin = make_plugin(hsm).start()
    plugin.wait_healthz("ok")
    limit = (DESCRIPTORS, DESCRIPTORS)
    resource.prlimit(plugin.process.pid, resource.RLIMIT_NOFILE, limit)
    wait_for(plugin.http_port)
    with contextlib.ExitStack() as clients:

        def connect():
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(("127.0.0.1", plugin.http_port()))
            return client

        yield plugin, connect


def test_long_headers(attacked):
    """80 connections that send headers without end cost next to no memory."""
    plugin, connect = attacked
    before = rss(plugin)
    clients = [connect() for _ in range(80)]
    sent = [0]

    def all_sent_or_dropped():
        for client in clients:
            with contextlib.suppress(OSError):
                sent[0] += client.send(b"X: " + b"x" * 60_000 + b"\r\n")
        return sent[0] > 20 * MIB or answers(plugin)

    wait_for(all_sent_or_dropped)

    assert 200 == livez(plugin)
    assert rss(plugin) - before < 40 * MIB
    assert "ok" == plugin.healthz()


def test_idle_connections(attacked):
    """With many more idle connections than descriptors everything goes on.

    New clients of the KMS socket are served, a killed worker is replaced, and the
    probes are answered.
    """
    plugin, connect = attacked
    port = plugin.http_port()
    for _ in range(DESCRIPTORS * 3):
        connect()
    assert 200 == livez(plugin)
    # /proc/PID/fd of a hardened process is closed to its own user.
    (line,) = re.findall(
        r"^process_open_fds (\S+)$", plugin.page("/metrics")[1], re.MULTILINE
    )
    descriptors = float(line)
    (worker,) = plugin.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: plugin.worker_pids() not in ([], [worker]))
    plugin._close_channel()

    plugin.wait_healthz("ok")
    assert plugin.encrypt(b"d" * 32).ciphertext
    assert float(descriptors) < DESCRIPTORS / 2
    assert port == plugin.http_port()
    assert "Too many open files" not in plugin.log()


def test_resets_and_noise(attacked):
    """What clients of the port do is not logged, and writes nothing to stderr."""
    plugin, _ = attacked
    before = plugin.log()
    for noise in (b"", b"\x16\x03\x01", b"GET /metrics HTTP/1.1\r\n\r\n") * 10:
        client = socket.create_connection(("127.0.0.1", plugin.http_port()))
        client.sendall(noise)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()

    assert 200 == livez(plugin)
    assert "" == plugin.log().removeprefix(before)


def test_port_taken_at_start(make_plugin, hsm, held_port):
    """A taken port is logged and shown, and served soon after it became free.

    Meanwhile the server serves, and the admin socket has probes and metrics.
    """
    address = f"127.0.0.1:{held_port}"
    with socket.create_server(("127.0.0.1", held_port)):
        plugin = make_plugin(hsm, http={"listen": address}).start()
        plugin.wait_healthz("ok")
        shown = plugin.cli("status", spawn=True)
        (event,) = plugin.events("cannot listen for HTTP")

        assert "error" == event["level"]
        assert address == event["address"]
        assert f"http {address}: not listening: Address already in use" in shown.stdout
        assert (200, "ok\n") == plugin.page("/livez")
        name = 'hsm_kms_http_listen_failures_total{listener="tcp"} '
        assert f"{name}0.0" not in plugin.page("/metrics")[1]
        assert name in plugin.page("/metrics")[1]
    wait_for(lambda: [e for e in plugin.events("listening for HTTP") if e["port"]])

    assert 200 == livez(plugin)
    assert "http" not in plugin.cli("status", spawn=True).stdout
