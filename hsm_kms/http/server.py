"""Probes, metrics and the admin socket, over plain HTTP.

Connections are served by threads, pages are made on the event loop: whoever gets an
answer knows that the loop is alive, and pages need no locks.

1. A page never waits on the token.
2. The TCP side has what anybody on the node may know; detail is on the admin socket,
   which is 0600.
3. A port or path that cannot be had is said in the log and costs nothing else.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from hsm_kms.log import get_logger

LOOP_SECONDS: Final = 2.0  # a loop that needs longer counts as dead
_IDLE_SECONDS: Final = 10.0  # a client that says nothing for so long is cut off

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer.

    Args:
        status: HTTP status code.
        body: UTF-8 bytes.
        content_type: Of the body.
    """

    status: int = HTTPStatus.OK
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of a fixed set of paths."""

    timeout = _IDLE_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "hsm-kms"
    sys_version = ""
    pages: Pages
    loop: asyncio.AbstractEventLoop

    def do_GET(self) -> None:
        """Answer with the page's body."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers only."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        page = self._page(self.path.partition("?")[0])
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def _page(self, path: str) -> Page:
        make = self.pages.get(path)
        if make is None:
            return Page(status=HTTPStatus.NOT_FOUND, body=b"not found\n")

        async def on_loop() -> Page:
            return make()

        future = asyncio.run_coroutine_threadsafe(on_loop(), self.loop)
        try:
            return future.result(LOOP_SECONDS)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            body = b"the event loop does not answer\n"
            return Page(status=HTTPStatus.INTERNAL_SERVER_ERROR, body=body)

    def log_message(self, *_: object) -> None:
        """Keep quiet: probes come every second."""

    def address_string(self) -> str:
        """Unix clients have no address."""
        return ""


class _TcpServer(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without the reverse look-up of the parent class."""
        socketserver.TCPServer.server_bind(self)


class _Tcp6Server(_TcpServer):
    address_family = socket.AF_INET6


class _UnixServer(_TcpServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Bind a socket that only our user can use."""
        path = Path(os.fsdecode(self.server_address))  # type: ignore[arg-type]
        path.unlink(missing_ok=True)
        umask = os.umask(0o177)
        try:
            super().server_bind()
        finally:
            os.umask(umask)


class HttpServer:
    """Serves pages until closed; made on the event loop that makes the pages."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._servers: list[ThreadingHTTPServer] = []
        self._paths: list[Path] = []

    def listen_tcp(self, host: str, port: int, pages: Pages) -> int | None:
        """Serve on a TCP port.

        Args:
            host: Address to bind.
            port: Port, or 0 for any.
            pages: What is served, by path.

        Returns:
            The port, or None where it cannot be had.
        """
        kind = _Tcp6Server if ":" in host else _TcpServer
        server = self._try(kind, (host, port), pages)
        return int(server.server_address[1]) if server else None

    def listen_unix(self, path: Path, pages: Pages) -> bool:
        """Serve on a unix socket with mode 0600; whether that worked.

        The path must be this process's alone: whatever socket is there is replaced.
        """
        if path.exists() and not path.is_socket():
            _log.warning("cannot listen", address=str(path), error="not a socket")
            return False
        server = self._try(_UnixServer, str(path), pages)
        if server is not None:
            self._paths.append(path)
        return server is not None

    def close(self) -> None:
        """Stop listening, and remove the unix sockets."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _try(
        self, kind: type[ThreadingHTTPServer], address: Any, pages: Pages
    ) -> ThreadingHTTPServer | None:
        handler = type("Handler", (_Handler,), {"pages": pages, "loop": self._loop})
        try:
            server = kind(address, handler)
        except OSError as error:
            _log.warning("cannot listen", address=str(address), error=error.strerror)
            return None
        self._servers.append(server)
        serving = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        serving.start()
        return server
