"""Pack messages into datagrams for one SOCK_SEQPACKET pair, and unpack them.

A datagram is an 8-byte big-endian number and a msgpack body; a reply repeats the
number of its request.
"""

from __future__ import annotations

from typing import Final

import msgspec

from hsm_kms.ipc.messages import Reply, Request

MAX_MESSAGE_BYTES: Final = 160 * 1024
_NUMBER_BYTES: Final = 8

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack(number: int, message: Request | Reply) -> bytes:
    """Return a message with its number as one datagram."""
    return number.to_bytes(_NUMBER_BYTES, "big") + _encoder.encode(message)


def unpack_request(datagram: memoryview) -> tuple[int, Request]:
    """Return number and request.

    Raises:
        MsgspecError: The datagram holds no request.
    """
    number = int.from_bytes(datagram[:_NUMBER_BYTES], "big")
    return number, _requests.decode(datagram[_NUMBER_BYTES:])


def unpack_reply(datagram: memoryview) -> tuple[int, Reply]:
    """Return number and reply.

    Raises:
        MsgspecError: The datagram holds no reply.
    """
    number = int.from_bytes(datagram[:_NUMBER_BYTES], "big")
    return number, _replies.decode(datagram[_NUMBER_BYTES:])
