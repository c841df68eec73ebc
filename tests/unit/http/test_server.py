"""The HTTP server: what it answers, to how many, how much and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from http import HTTPStatus

import pytest

from hsm_kms.http import exchange, server
from hsm_kms.http.address import TcpAddress, UnixAddress
from hsm_kms.http.exchange import Page
from hsm_kms.http.pages import sparing
from hsm_kms.http.server import Listener
from tests.harness.log_capture import captured
from tests.harness.wait import patient, until

GET = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


def ill():
    """Make no page."""
    raise ValueError("the text of a bug may hold anything")


PAGES = {
    "/page": lambda: Page(body=b"content\n"),
    "/busy": lambda: Page(status=HTTPStatus.SERVICE_UNAVAILABLE, body=b"busy\n"),
    "/ill": ill,
    "/large": lambda: Page(body=b"x" * 5_000_000),
}


@contextlib.asynccontextmanager
async def listening(address=None, pages=PAGES, retry=0.05):
    """Serve the pages; a free port unless another address is given."""
    listener = Listener(address or TcpAddress("127.0.0.1", 0), pages, retry)
    listener.start()
    try:
        yield listener
    finally:
        await listener.close()


async def connect(listener):
    """Connect to the listener's port."""
    return await asyncio.open_connection("127.0.0.1", listener.port)


async def ask(listener, request):
    """Send a request, and return the status line's code, the fields and the body."""
    reader, writer = await connect(listener)
    writer.write(request)
    async with asyncio.timeout(patient()):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return int(line.split()[1]), fields, body


@pytest.mark.parametrize(
    ("request_line", "code", "body"),
    [
        (b"GET /page HTTP/1.1", 200, b"content\n"),
        (b"GET /page HTTP/1.0", 200, b"content\n"),
        (b"GET /page?a=b HTTP/1.1", 200, b"content\n"),
        (b"HEAD /page HTTP/1.1", 200, b""),
        (b"GET /busy HTTP/1.1", 503, b"busy\n"),
        (b"GET /other HTTP/1.1", 404, b"not found\n"),
        (b"GET / HTTP/1.1", 404, b"not found\n"),
        (b"GET /%2e%2e/page HTTP/1.1", 404, b"not found\n"),
        (b"POST /page HTTP/1.1", 405, b"method not allowed\n"),
        (b"GET /page", 400, b"bad request\n"),
        (b"GET  /page HTTP/1.1", 400, b"bad request\n"),
        (b"GET page HTTP/1.1", 400, b"bad request\n"),
        (b"GET /page HTTP/2.0", 400, b"bad request\n"),
        (b"GET /p\xff HTTP/1.1", 400, b"bad request\n"),
        (b"GET http://x/page HTTP/1.1", 400, b"bad request\n"),
        (b"\x16\x03\x01\x02\x00\x01", 400, b"bad request\n"),
    ],
)
async def test_requests(request_line, code, body):
    """GET and HEAD of known paths are answered, and anything else is refused."""
    async with listening() as listener:
        got, fields, content = await ask(listener, request_line + b"\r\n\r\n")

    assert (code, body) == (got, content)
    assert "Connection: close" in fields
    assert ("Allow: GET, HEAD" in fields) == (code == 405)


async def test_head_names_the_length():
    """HEAD has the fields of GET, with the length of the body that GET would have."""
    async with listening() as listener:
        _, of_get, _ = await ask(listener, GET)
        _, of_head, _ = await ask(listener, GET.replace(b"GET", b"HEAD"))

    assert of_get == of_head
    assert "Content-Length: 8" in of_get


async def test_slowly_sent():
    """A request that arrives byte by byte is answered like any other."""
    async with listening() as listener:
        reader, writer = await connect(listener)
        for byte in GET:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        answer = await reader.read()
        writer.close()

    assert answer.endswith(b"content\n")


@pytest.mark.parametrize(("extra", "code"), [(0, 200), (1, 431), (100_000, 431)])
async def test_long_head(extra, code):
    """The head of a request has at most 8 KiB."""
    start = GET.removesuffix(b"\r\n") + b"X: "
    end = b"\r\n\r\n"
    fill = exchange.MAX_HEAD_BYTES - len(start) - len(end) + extra
    async with listening() as listener:
        reader, writer = await connect(listener)
        writer.write(start + b"x" * fill + end)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # it did not read all of it
            while chunk := await reader.read(4096):
                answer += chunk
        writer.close()

    assert f"HTTP/1.1 {code}".encode() == answer[:12] or (extra > 1 and not answer)


async def test_more_connections_than_places():
    """The connection over the limit takes the place of the oldest."""
    async with listening() as listener:
        idle = [await connect(listener) for _ in range(server.MAX_CONNECTIONS)]
        await until(lambda: len(listener._connections) == server.MAX_CONNECTIONS)
        code, _, body = await ask(listener, GET)
        oldest, second = idle[0][0], idle[1][0]

        assert (200, b"content\n") == (code, body)
        assert b"" == await oldest.read()
        assert not second.at_eof()
        for _, writer in idle:
            writer.close()


async def test_flood():
    """While 300 idle connections press in, few are held, and requests are answered."""
    with contextlib.ExitStack() as clients:
        async with listening() as listener:
            for _ in range(300):
                client = clients.enter_context(socket.socket())
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(("127.0.0.1", listener.port))
            counts = []
            await until(lambda: len(listener._connections) >= 15)
            for _ in range(5):
                counts.append(len(listener._connections))
                assert 200 == (await ask(listener, GET))[0]

    assert max(counts) <= server.MAX_CONNECTIONS


async def test_whole_time_is_bounded(monkeypatch):
    """A client that sends, or reads, a little now and then is cut off all the same."""
    monkeypatch.setattr(exchange, "EXCHANGE_SECONDS", 0.2)
    async with listening() as listener:
        reader, sending = await connect(listener)
        _, reading = await connect(listener)
        reading.write(GET.replace(b"/page", b"/large"))
        trickle = asyncio.create_task(_trickle(sending))
        async with asyncio.timeout(patient()):
            with contextlib.suppress(ConnectionResetError):  # bytes were left unread
                assert b"" == await reader.read()
        await until(lambda: not listener._connections)
        trickle.cancel()
        sending.close()
        reading.close()


async def _trickle(writer):
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)


async def test_reset_is_silent(capfd):
    """A client that resets its connection leaves no trace on stderr or in the log."""
    with captured("info") as log:
        async with listening() as listener:
            for request in (b"", b"GET /pa", GET.replace(b"/page", b"/large")):
                _, writer = await connect(listener)
                writer.write(request)
                await writer.drain()
                client = writer.get_extra_info("socket")
                client.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )
                writer.transport.abort()
            await until(lambda: not listener._connections)
            assert 200 == (await ask(listener, GET))[0]

    assert "" == capfd.readouterr().err
    assert ["listening for HTTP"] == [each["event"] for each in log.events()]


async def test_bug_in_a_page(capfd):
    """A page that raises is answered with 500 and logged once, without its text."""
    with captured("info") as log:
        async with listening() as listener:
            request = GET.replace(b"/page", b"/ill")
            codes = [(await ask(listener, request))[0] for _ in range(3)]

    assert [500] * 3 == codes
    assert ["/ill"] == [each["path"] for each in log.events() if "bug" in each["event"]]
    assert "" == capfd.readouterr().err


async def test_no_descriptor_left():
    """A connection that no descriptor is left for is taken when there is one again."""
    async with listening() as listener:
        _, writer = await connect(listener)
        writer.close()
        await until(lambda: not listener._connections)
        client = socket.socket()
        spare: list[int] = []
        with contextlib.suppress(OSError):
            while True:
                spare.append(os.dup(0))
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(("127.0.0.1", listener.port))
        await asyncio.sleep(0.05)  # the listener meets the limit, or not yet
        for each in spare:
            os.close(each)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, GET)
        async with asyncio.timeout(patient()):
            answer = await loop.sock_recv(client, 4096)
        client.close()

    assert b"HTTP/1.1 200" == answer[:12]


async def test_metrics_once_a_second():
    """Whoever asks, and however often, the metrics are made at most once a second."""
    made = 0

    def metrics():
        nonlocal made
        made += 1
        return Page(body=b"%d" % made)

    pages = sparing({"/metrics": metrics, "/livez": PAGES["/page"]})
    first = pages["/metrics"]().body
    again = {pages["/metrics"]().body for _ in range(100)}
    await until(lambda: pages["/metrics"]().body != first)

    assert {first} == again
    assert made == 2


async def test_port_taken(held_port):
    """A taken port is told and tried again, and served once it is free."""
    address = ("127.0.0.1", held_port)
    with socket.create_server(address) as owner, captured("info") as log:
        async with listening(TcpAddress(*address)) as listener:
            await until(lambda: listener.failures >= 3)
            assert "Address already in use" == listener.problem
            owner.close()
            await until(lambda: listener.problem is None)
            assert 200 == (await ask(listener, GET))[0]

    assert ["error", "info"] == [each["level"] for each in log.events()]


async def test_closed():
    """At the end no connection is left, and the port is free."""
    async with listening() as listener:
        reader, writer = await connect(listener)
        await until(lambda: listener._connections)
    port = listener.port

    assert b"" == await reader.read()
    writer.close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


async def test_ipv6():
    """An IPv6 address is served, and written in brackets."""
    if not socket.has_ipv6:
        pytest.skip("the machine has no IPv6")
    async with listening(TcpAddress("::1", 0)) as listener:
        if listener.port is None:
            pytest.skip(f"the machine has no address ::1: {listener.problem}")
        reader, writer = await asyncio.open_connection("::1", listener.port)
        writer.write(GET)
        answer = await reader.read()
        writer.close()

    assert answer.endswith(b"content\n")
    assert "[::1]:0" == str(listener.address)


async def test_unix_socket(directory):
    """The admin socket is for its owner alone, replaces a stale one, and is removed."""
    path = directory / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    umask = os.umask(0)
    os.umask(umask)
    async with listening(UnixAddress(path)) as listener:
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
        assert listener.problem is None
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GET)
        assert (await reader.read()).endswith(b"content\n")
        writer.close()

    assert not path.exists()
    assert umask == os.umask(umask)


async def test_unix_path_in_use_for_something_else(directory):
    """A file in the place of the admin socket is left alone, and told."""
    path = directory / "admin.sock"
    path.write_text("precious")
    async with listening(UnixAddress(path)) as listener:
        assert "the path exists and is not a socket" == listener.problem

    assert "precious" == path.read_text()
