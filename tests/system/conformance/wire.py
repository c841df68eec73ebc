"""Protobuf by hand: field numbers and wire types, and no generated code."""

from __future__ import annotations

BYTES = 2  # wire type of strings, bytes and messages


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: bytes) -> bytes:
    """A field of strings, bytes or messages."""
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def parse(message: bytes) -> dict[int, bytes]:
    """The fields of a message that has only such fields, each once."""
    fields: dict[int, bytes] = {}
    rest = message
    while rest:
        tag, rest = _number(rest)
        size, rest = _number(rest)
        assert BYTES == tag & 7
        assert tag >> 3 not in fields
        fields[tag >> 3], rest = rest[:size], rest[size:]
        assert size == len(fields[tag >> 3])
    return fields


def _number(data: bytes) -> tuple[int, bytes]:
    number = 0
    for at, byte in enumerate(data):
        number |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return number, data[at + 1 :]
    raise AssertionError("a number without end")
