"""One gRPC call by hand over HTTP/2, for what no gRPC client would send."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events

from tests.harness.wait import patient

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PREFIX = struct.Struct(">BI")  # compressed or not, length of the message


@dataclass
class Answer:
    """What came back.

    Attributes:
        headers: Header and trailer fields, the later winning.
        body: The data frames, put together.
        reset: The code of a RST_STREAM frame, or None.
    """

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """The gRPC status code as a number."""
        status = self.headers.get("grpc-status")
        return None if status is None else int(status)

    @property
    def sentence(self) -> str:
        """The gRPC status message."""
        return unquote(self.headers.get("grpc-message", ""))

    @property
    def message(self) -> bytes:
        """The one message in the body."""
        compressed, size = PREFIX.unpack_from(self.body)
        assert (0, len(self.body)) == (compressed, PREFIX.size + size)
        return self.body[PREFIX.size :]


async def call(
    socket: Path,
    method: str,
    message: bytes = b"",
    *,
    authority: str = "localhost",
    framed: bytes | None = None,
) -> Answer:
    """Send one unary request on a connection of its own.

    Args:
        socket: The server's socket.
        method: Full path, such as "/v2.KeyManagementService/Status".
        message: The request, serialised or not what it should be.
        authority: The :authority field, as it is.
        framed: The whole body instead of a well framed `message`.
    """
    reader, writer = await asyncio.open_unix_connection(socket)
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False
        )
    )
    connection.initiate_connection()
    connection.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ],
    )
    body = PREFIX.pack(0, len(message)) + message if framed is None else framed
    connection.send_data(1, body, end_stream=True)
    writer.write(connection.data_to_send())
    try:
        async with asyncio.timeout(patient()):
            return await _answer(connection, reader, writer)
    finally:
        writer.close()


def _text(headers: Iterable[tuple[bytes | str, bytes | str]]) -> dict[str, str]:
    """Return decoded header fields by name; h2 types them as bytes or str."""
    return {str(name): str(value) for name, value in headers}


async def _answer(
    connection: h2.connection.H2Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> Answer:
    answer = Answer()
    while data := await reader.read(65536):
        for event in connection.receive_data(data):
            match event:
                case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                    answer.headers |= _text(event.headers)
                case h2.events.DataReceived():
                    answer.body += event.data
                case h2.events.StreamReset():
                    answer.reset = int(event.error_code)
                    return answer
                case h2.events.StreamEnded():
                    return answer
                case _:
                    pass
        writer.write(connection.data_to_send())
    return answer
