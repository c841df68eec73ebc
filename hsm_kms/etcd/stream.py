"""Read a file piece by piece, with no more in memory than one piece needs."""

from __future__ import annotations

import codecs
import os
import re
import stat
from typing import BinaryIO, Final

MAX_GAP_BYTES: Final = 64 * 1024**2
"""Most bytes read without the end of an object; no object of etcd is that long."""

_GZIP: Final = b"\x1f\x8b"
_READ_BYTES: Final = 64 * 1024
_SPACE: Final = re.compile(r"\s*")


class EndlessError(Exception):
    """Raised when `MAX_GAP_BYTES` were read without the end of an object."""


class CompressedError(Exception):
    """Raised when the file is compressed with gzip."""


class Text:
    """Take pieces from the front of a stream's text."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0

    def ended(self) -> bool:
        """Return True if nothing but white space is left, and drop white space."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return False
            if not self._read():
                return True

    def take(self, piece: re.Pattern[str]) -> str | None:
        """Remove and return the piece that the text begins with.

        Args:
            piece: Pattern of the piece; exactly one of its groups matches.

        Returns:
            The group's text, or None if the pattern does not match up to the end.
        """
        while not (found := piece.match(self._text, self._at)):
            if not self._read():
                return None
        self._at = found.end()
        return found[found.lastindex or 0]

    def rest(self) -> str:
        """Return the rest of the text."""
        while self._read():
            pass
        rest, self._at = self._text[self._at :], len(self._text)
        return rest

    def _read(self) -> bool:
        """Read more: as much as is buffered, so that the work stays linear."""
        self._text = self._text[self._at :]
        self._at = 0
        data = self._stream.read(max(_READ_BYTES, len(self._text)))
        self._text += self._decoder.decode(data, final=not data)
        return bool(data)


class Stream:
    """Read a file, count the bytes, and give up if no object ends for too long."""

    def __init__(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._file = file
        self._done = 0
        self._last = 0

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end of the file.

        Raises:
            EndlessError: `MAX_GAP_BYTES` were read since `found_one` was called.
            CompressedError: The file begins as gzip files do.
        """
        data = self._file.read(size)
        if not self._done and data.startswith(_GZIP):
            raise CompressedError("is compressed with gzip")
        self._done += len(data)
        if self._done - self._last > MAX_GAP_BYTES:
            raise EndlessError(f"has no object in {MAX_GAP_BYTES >> 20} MiB")
        return data

    def found_one(self) -> None:
        """Note that an object has ended."""
        self._last = self._done

    def share(self) -> float | None:
        """Return how much has been read, from 0 to 1; None if the size is unknown."""
        return self._done / max(1, self._size) if self._size is not None else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
