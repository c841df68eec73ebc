"""A file read piece by piece, with no more of it in memory than one piece needs."""

from __future__ import annotations

import codecs
import os
import re
import stat
from typing import BinaryIO, Final

MAX_GAP_BYTES: Final = 64 * 1024**2
"""Most bytes read without an object in them; none of etcd's is that long."""

_READ_BYTES: Final = 64 * 1024
_SPACE: Final = re.compile(r"\s*")


class EndlessError(Exception):
    """Far too much was read without an object in it."""


class Text:
    """The text of a stream, of which pieces are taken from the front."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0

    def ended(self) -> bool:
        """Whether nothing but white space is left; that is dropped."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return False
            if not self._read():
                return True

    def take(self, piece: re.Pattern[str]) -> str | None:
        """The piece that the text begins with, None where it does not before it ends.

        Args:
            piece: Exactly one of its groups takes part in a match.
        """
        while not (found := piece.match(self._text, self._at)):
            if not self._read():
                return None
        self._at = found.end()
        return found[found.lastindex or 0]

    def rest(self) -> str:
        """All that is left."""
        while self._read():
            pass
        rest, self._at = self._text[self._at :], len(self._text)
        return rest

    def _read(self) -> bool:
        """Read more, as much again as there is, so that the whole work is linear."""
        self._text = self._text[self._at :]
        self._at = 0
        data = self._stream.read(max(_READ_BYTES, len(self._text)))
        self._text += self._decoder.decode(data, final=not data)
        return bool(data)


class Stream:
    """The file as it is read: counts, and gives up where nothing comes."""

    def __init__(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._file = file
        self._done = 0
        self._last = 0

    def read(self, size: int) -> bytes:
        """At most this many bytes.

        Raises:
            EndlessError: Far too many came without an object in them.
        """
        data = self._file.read(size)
        self._done += len(data)
        if self._done - self._last > MAX_GAP_BYTES:
            raise EndlessError(f"has no object in {MAX_GAP_BYTES >> 20} MiB")
        return data

    def found_one(self) -> None:
        """An object ends here."""
        self._last = self._done

    def share(self) -> float | None:
        """How much has been read, from 0 to 1."""
        return self._done / max(1, self._size) if self._size is not None else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
