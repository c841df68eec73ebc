"""How messages travel over one SOCK_SEQPACKET pair.

A datagram is an 8-byte big-endian number and a msgpack body; the answer repeats
the number.
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
    """One datagram."""
    return number.to_bytes(_NUMBER_BYTES, "big") + _encoder.encode(message)


def unpack_request(datagram: memoryview) -> tuple[int, Request]:
    """The number and the request; raises msgspec.MsgspecError on anything else."""
    number = int.from_bytes(datagram[:_NUMBER_BYTES], "big")
    return number, _requests.decode(datagram[_NUMBER_BYTES:])


def unpack_reply(datagram: memoryview) -> tuple[int, Reply]:
    """The number and the reply; raises msgspec.MsgspecError on anything else."""
    number = int.from_bytes(datagram[:_NUMBER_BYTES], "big")
    return number, _replies.decode(datagram[_NUMBER_BYTES:])
