"""Read the output of `etcdctl get --prefix / -w json` as a stream.

An incomplete file must not look complete: a file that is truncated, that etcdctl
limited, or that is something else, is an error.

The objects are in one array. Each is a flat map whose strings are base64, so a map ends
at the first closing brace, and only one map is in memory at a time. Without the maps,
the output is a small JSON document.
"""

from __future__ import annotations

import binascii
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from hsm_kms.etcd.source import DEFAULT_PREFIX, EtcdError, Item
from hsm_kms.etcd.stream import CompressedError, EndlessError, Stream, Text
from hsm_kms.etcd.text import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

STDIN: Final = Path("-")
HINT: Final = "give the complete output of `etcdctl get --prefix / -w json`"
GZIP_HINT: Final = "decompress it: `zcat FILE | hsm-kms etcd scan --from-json -`"

_HEAD: Final = re.compile(r'(.*?"kvs"\s*:\s*\[)', re.DOTALL)
_FIRST: Final = re.compile(r"\s*(\{[^{}]*\}|\])")
_NEXT: Final = re.compile(r"\s*(?:,\s*(\{[^{}]*\})|(\]))")
_TAIL: Final = re.compile(r"([^{}]*\})")


class JsonFile:
    """Read a JSON file; see `hsm_kms.etcd.source.Source`.

    Args:
        path: The file, or `STDIN`.
        prefix: Prefix of the keys to return; other keys are skipped.
    """

    def __init__(self, path: Path, *, prefix: bytes = DEFAULT_PREFIX) -> None:
        self.prefix = prefix
        self.revision: int | None = None
        self.name = "stdin" if path == STDIN else str(path)
        self._path = path
        self._stream: Stream | None = None

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            EtcdError: The file cannot be opened.
        """
        try:
            file = sys.stdin.buffer if self._path == STDIN else self._path.open("rb")
            self._stream = Stream(file)
        except OSError as error:
            raise EtcdError(f"{self.name} cannot be read: {error.strerror}") from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file, unless it is stdin."""
        if self._stream and self._path != STDIN:
            self._stream.close()

    def __iter__(self) -> Iterator[Item]:
        """Return an iterator over every object below the prefix.

        Raises:
            EtcdError: The file is corrupt, incomplete, or something else.
        """
        return (item for item in self._all() if item.key.startswith(self.prefix))

    def get(self, key: bytes) -> Item | None:
        """Return the object with this key, or None if there is none.

        Raises:
            EtcdError: The file is corrupt before that object.
        """
        return next((item for item in self._all() if item.key == key), None)

    def total(self) -> int | None:
        """Return None, because the number is at the end of the file."""
        return None

    def share(self) -> float | None:
        """Return how much of the file has been read, from 0 to 1; None for a pipe."""
        return self._stream.share() if self._stream else None

    def _all(self) -> Iterator[Item]:
        """Yield every object of the file."""
        assert self._stream  # noqa: S101 - entered
        outputs = _Outputs(Text(self._stream))
        try:
            for pair in outputs.pairs():
                self._stream.found_one()
                yield _item(pair)
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            so_far = f"after {count_of(outputs.objects)}"
            raise EtcdError(
                f"{self.name} is truncated or not JSON, {so_far}", hint=HINT
            ) from None
        except OSError as error:
            raise EtcdError(f"{self.name} cannot be read: {error.strerror}") from None
        except EndlessError as error:
            raise EtcdError(f"{self.name} {error}", hint=HINT) from None
        except CompressedError as error:
            raise EtcdError(f"{self.name} {error}", hint=GZIP_HINT) from None
        if complaint := outputs.complaint():
            raise EtcdError(f"{self.name} {complaint}", hint=HINT)
        self.revision = outputs.revision


class _Outputs:
    """Parse one output of etcdctl, or several in a row.

    Attributes:
        objects: Number of objects so far.
        revision: Revision in the last header; None before the end of its output.
    """

    def __init__(self, text: Text) -> None:
        self.objects = 0
        self.revision: int | None = None
        self._text = text
        self._promised = 0
        self._values = 0
        self._more = False
        self._headers = 0
        self._outputs = 0

    def pairs(self) -> Iterator[dict[str, Any]]:
        """Yield the map of each object.

        Raises:
            ValueError: The text is not JSON, or etcdctl did not write it.
            TypeError: As ValueError.
            ArithmeticError: As ValueError.
            RecursionError: As ValueError.
        """
        while not self._text.ended():
            head = self._text.take(_HEAD)
            if head is None:
                if self._note_whole(self._text.rest()):
                    raise ValueError("truncated")
                return
            head = self._note_whole(head)
            yield from self._array()
            tail = self._text.take(_TAIL)
            self._note(json.loads(f"{head}]{tail}"))

    def _array(self) -> Iterator[dict[str, Any]]:
        pair = self._text.take(_FIRST)
        while pair != "]":
            found = json.loads(pair or "")
            self.objects += 1
            self._values += "value" in found
            yield found
            pair = self._text.take(_NEXT)

    def _note_whole(self, text: str) -> str:
        """Note complete outputs without objects, and return the rest of the text."""
        decoder = json.JSONDecoder()
        while text:
            try:
                found, end = decoder.raw_decode(text)
            except ValueError:
                return text
            self._note(found)
            text = text[end:].lstrip()
        return text

    def _note(self, output: Any) -> None:
        """Note the header and the counts of an output."""
        self._outputs += 1
        if not isinstance(output, dict):
            return
        header = output.get("header")
        if isinstance(header, dict) and "revision" in header:
            self._headers += 1
            self.revision = int(header["revision"])
        self._promised += int(output.get("count") or 0)
        self._more = self._more or bool(output.get("more"))

    def complaint(self) -> str:
        """Return why objects may be missing; "" if nothing is wrong."""
        if not self._outputs:
            return "is empty"
        if self._headers != self._outputs:
            return "has no header with a revision"
        if self._more or self._promised > self.objects:
            most = max(self._promised, self.objects)
            return f"has only {self.objects} of {most} objects"
        if self.objects and not self._values:
            return "has keys but no values"
        return ""


def _item(pair: dict[str, Any]) -> Item:
    """Return a map of etcdctl as an object; etcdctl omits an empty value.

    Raises:
        ValueError: The map has no key, or key or value is not base64.
    """
    key, value = pair.get("key"), pair.get("value", "")
    if not isinstance(key, str) or not isinstance(value, str):
        raise ValueError("key and value must be text")  # noqa: TRY004 - one error type
    return Item(_decoded(key), _decoded(value))


def _decoded(text: str) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)
