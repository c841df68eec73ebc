"""Where the name of a KMS v1 value ends, and its wrapped DEK with it.

A value is NAME ":" LENGTH WRAPPED DATA with a length of two bytes. A name may hold
colons, and so may what follows, so the prefix alone does not tell.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hsm_kms.errors import CiphertextError
from hsm_kms.wrapping.record import MAX_RECORD_BYTES, Record

MAX_NAME_BYTES: Final = 1024
_LEAST_DATA_BYTES: Final = 12 + 16  # nonce and tag
_LENGTH_BYTES: Final = 2
_LIKELY_WRAPPED_BYTES: Final = 4096


class Split(NamedTuple):
    """One way to read a value.

    Args:
        name_bytes: Length of the name.
        wrapped_bytes: Length of the wrapped DEK.
    """

    name_bytes: int
    wrapped_bytes: int

    @property
    def start(self) -> int:
        """Where the wrapped DEK begins."""
        return self.name_bytes + len(":") + _LENGTH_BYTES

    @property
    def end(self) -> int:
        """Where the data begins."""
        return self.start + self.wrapped_bytes


def split_v1(rest: bytes) -> tuple[Split, Record | None] | None:
    """The one way to read a value that is right, or the likeliest.

    Args:
        rest: The value behind its prefix.

    Returns:
        The split, and our record if it is ours; None where nothing fits.
    """
    splits = _splits(rest)
    for split in splits:
        if split.wrapped_bytes <= MAX_RECORD_BYTES:
            record = record_of(rest[split.start : split.end])
            if record:
                return split, record
    # Two letters of a name, read as a length, come to more than 8,000.
    short = (each for each in splits if each.wrapped_bytes <= _LIKELY_WRAPPED_BYTES)
    likeliest = next(short, splits[0] if splits else None)
    return (likeliest, None) if likeliest else None


def record_of(wrapped: bytes) -> Record | None:
    """Our own record, None where it is not one."""
    try:
        return Record.decode(wrapped)
    except CiphertextError:
        return None


def _splits(rest: bytes) -> list[Split]:
    """Every colon behind which a length stands that fits, from the first on."""
    found = []
    at = rest.find(b":", 1, MAX_NAME_BYTES + 1)
    while at > 0:
        length = rest[at + 1 : at + 1 + _LENGTH_BYTES]
        split = Split(at, int.from_bytes(length, "big"))
        if split.wrapped_bytes and split.end + _LEAST_DATA_BYTES <= len(rest):
            found.append(split)
        at = rest.find(b":", at + 1, MAX_NAME_BYTES + 1)
    return found
