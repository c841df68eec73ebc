"""Servers of tests that answer over HTTP, each in threads of its own."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Handler(BaseHTTPRequestHandler):
    """Answer GET and POST by `respond`, and log nothing."""

    def respond(self) -> None:
        """Call `answer` for a request."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer a request; http.server calls this."""
        self.respond()

    def do_POST(self) -> None:
        """Answer a request; http.server calls this."""
        self.respond()

    def answer(self, body: bytes, content_type: str) -> None:
        """Send a whole answer with code 200."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class HttpServer(ThreadingHTTPServer):
    """Serve on a free port of 127.0.0.1 while it is entered.

    Args:
        handler: Its attribute `server` is this object.
    """

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
