"""Answer one HTTP request on a connection, within fixed bounds.

Anybody on the node can reach the TCP port, so a request may cost little, and only for a
short time: a connection carries one request, the head of the request has at most
`MAX_HEAD_BYTES`, its body is not read, and everything up to the end of the answer takes
at most `EXCHANGE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from hsm_kms.log import get_logger

if TYPE_CHECKING:
    import socket

MAX_HEAD_BYTES: Final = 8192
EXCHANGE_SECONDS: Final = 5.0

_END: Final = b"\r\n\r\n"
# RFC 9112, section 3: method, target in origin form, version. The query is ignored.
_REQUEST_LINE: Final = re.compile(
    rb"([A-Z]{1,16}) (/[!->@-~]*)(?:\?[!-~]*)? HTTP/1\.[01]\r\n"
)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Hold the answer to a request.

    Args:
        status: HTTP status code.
        body: Content, UTF-8.
        content_type: Media type of the body.
    """

    status: HTTPStatus = HTTPStatus.OK
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]


class Responder:
    """Answer requests with pages.

    Args:
        pages: Functions that make the pages, by path; called on the event loop. They
            must not wait for anything.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._broken: set[str] = set()

    async def serve(self, connection: socket.socket) -> None:
        """Read one request and answer it.

        A client that is too slow, or that resets the connection, is dropped without a
        word: clients come in any number, and the log must not grow with them.

        Args:
            connection: An accepted socket that does not block. The caller closes it.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(EXCHANGE_SECONDS):
                head = await _read_head(connection)
                if head:
                    await loop.sock_sendall(connection, self._response(head))
        except (TimeoutError, OSError):
            return

    def _response(self, head: bytes) -> bytes:
        method, page = self._answer(head)
        fields = (
            f"HTTP/1.1 {page.status:d} {page.status.phrase}",
            f"Content-Type: {page.content_type}",
            f"Content-Length: {len(page.body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *(["Allow: GET, HEAD"] if page.status == _NOT_ALLOWED.status else ()),
        )
        body = b"" if method == b"HEAD" else page.body
        return "\r\n".join(fields).encode() + _END + body

    def _answer(self, head: bytes) -> tuple[bytes, Page]:
        """Return the method of the request, and the page that answers it."""
        if _END not in head:
            return b"", _TOO_LONG
        found = _REQUEST_LINE.match(head)
        if found is None:
            return b"", _MALFORMED
        method, path = found[1], found[2].decode("ascii")
        if method not in {b"GET", b"HEAD"}:
            return method, _NOT_ALLOWED
        make = self._pages.get(path)
        return method, _NOT_FOUND if make is None else self._make(path, make)

    def _make(self, path: str, make: Callable[[], Page]) -> Page:
        try:
            page = make()
        except Exception as error:  # noqa: BLE001 - a bug in a page must not end the server
            if path not in self._broken:  # once: anybody can ask for it all day
                self._broken.add(path)
                _log.error("bug in a page", path=path, exc_info=error)
            return _BROKEN
        self._broken.discard(path)
        return page


async def _read_head(connection: socket.socket) -> bytes:
    """Return the head of a request, cut at `MAX_HEAD_BYTES`; b"" if there is none."""
    loop = asyncio.get_running_loop()
    head = bytearray()
    while _END not in head and len(head) < MAX_HEAD_BYTES:
        received = await loop.sock_recv(connection, MAX_HEAD_BYTES - len(head))
        if not received:
            return b""
        head += received
    return bytes(head)


def _error(status: HTTPStatus) -> Page:
    return Page(status=status, body=f"{status.phrase.lower()}\n".encode())


_BROKEN: Final = _error(HTTPStatus.INTERNAL_SERVER_ERROR)
_MALFORMED: Final = _error(HTTPStatus.BAD_REQUEST)
_NOT_ALLOWED: Final = _error(HTTPStatus.METHOD_NOT_ALLOWED)
_NOT_FOUND: Final = _error(HTTPStatus.NOT_FOUND)
_TOO_LONG: Final = _error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
