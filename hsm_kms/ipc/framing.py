"""Pack messages into datagrams for one SOCK_SEQPACKET pair, and unpack them.

A datagram is an 8-byte big-endian number and a msgpack body; a reply repeats the
number of its request, and says what the worker has spent in the module.
"""

from __future__ import annotations

from typing import Final

import msgspec

from hsm_kms.ipc.functions import Spent
from hsm_kms.ipc.messages import Reply, Request

MAX_MESSAGE_BYTES: Final = 160 * 1024
_NUMBER_BYTES: Final = 8

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[tuple[Reply, Spent]] = msgspec.msgpack.Decoder(
    tuple[Reply, Spent]
)


def pack(number: int, request: Request) -> bytes:
    """Return a request with its number as one datagram."""
    return number.to_bytes(_NUMBER_BYTES, "big") + _encoder.encode(request)


def pack_reply(number: int, reply: Reply, spent: Spent | None = None) -> bytes:
    """Return a reply, and what was spent since the one before, as one datagram."""
    body = _encoder.encode((reply, spent or {}))
    return number.to_bytes(_NUMBER_BYTES, "big") + body


def unpack_request(datagram: memoryview) -> tuple[int, Request]:
    """Return number and request.

    Raises:
        MsgspecError: The datagram holds no request.
    """
    number = int.from_bytes(datagram[:_NUMBER_BYTES], "big")
    return number, _requests.decode(datagram[_NUMBER_BYTES:])


def unpack_reply(datagram: memoryview) -> tuple[int, Reply, Spent]:
    """Return number and reply, and what was spent in the module.

    Raises:
        MsgspecError: The datagram holds no reply.
    """
    number = int.from_bytes(datagram[:_NUMBER_BYTES], "big")
    return number, *_replies.decode(datagram[_NUMBER_BYTES:])
