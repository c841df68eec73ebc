"""Find the wrapped DEK in a KMS v1 value.

A value is NAME ":" LENGTH WRAPPED DATA with a length of two bytes. The name may contain
colons, and so may what follows, so the first colon need not be the end of the name.
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
    """Describe one way to split a value.

    Args:
        name_bytes: Length of the name in bytes.
        wrapped_bytes: Length of the wrapped DEK in bytes.
    """

    name_bytes: int
    wrapped_bytes: int

    @property
    def start(self) -> int:
        """Return the offset of the wrapped DEK."""
        return self.name_bytes + len(":") + _LENGTH_BYTES

    @property
    def end(self) -> int:
        """Return the offset of the data."""
        return self.start + self.wrapped_bytes


def split_v1(rest: bytes) -> tuple[Split, Record | None] | None:
    """Return the split at which a record of hsm-kms is found, or else the likeliest.

    Args:
        rest: The value without its prefix.

    Returns:
        The split, and the record or None; None if no split fits.
    """
    splits = _splits(rest)
    for split in splits:
        if split.wrapped_bytes <= MAX_RECORD_BYTES:
            record = record_of(rest[split.start : split.end])
            if record:
                return split, record
    # Two letters of a name, read as a length, are more than 8,000.
    short = (each for each in splits if each.wrapped_bytes <= _LIKELY_WRAPPED_BYTES)
    likeliest = next(short, splits[0] if splits else None)
    return (likeliest, None) if likeliest else None


def record_of(wrapped: bytes) -> Record | None:
    """Return the record of hsm-kms in `wrapped`, or None if it is not one."""
    try:
        return Record.decode(wrapped)
    except CiphertextError:
        return None


def _splits(rest: bytes) -> list[Split]:
    """Return a split for each colon that is followed by a length that fits."""
    found = []
    at = rest.find(b":", 1, MAX_NAME_BYTES + 1)
    while at > 0:
        length = rest[at + 1 : at + 1 + _LENGTH_BYTES]
        split = Split(at, int.from_bytes(length, "big"))
        if split.wrapped_bytes and split.end + _LEAST_DATA_BYTES <= len(rest):
            found.append(split)
        at = rest.find(b":", at + 1, MAX_NAME_BYTES + 1)
    return found
