"""Write to a stdout and stderr that may be closed, full, or not UTF-8."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import click

from hsm_kms.cli.hints import with_config

if TYPE_CHECKING:
    from collections.abc import Iterator

_ERRORS: Final = "hsm-kms-ascii"
_ASCII: Final = {"✓": "+", "✗": "x"}


class OutputError(OSError):
    """Raised when stdout or stderr cannot be written."""


class _Output:
    """Write to a text stream, and raise `OutputError` if that fails.

    Args:
        stream: The stream, whose other methods can be called here.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # click would write UTF-8 to it, whatever the encoding
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from None


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Write in ASCII what stdout or stderr cannot encode: marks, and escapes.

    A locale can have another encoding than UTF-8, and a path can contain bytes that
    are text in no encoding. A stream that cannot be written raises `OutputError`.
    """
    codecs.register_error(_ERRORS, _in_ascii)
    with contextlib.ExitStack() as changed:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                changed.callback(_reconfigure, stream, stream.errors or "strict")
                stream.reconfigure(errors=_ERRORS)
        out, err = (
            cast("TextIO", _Output(sys.stdout)),
            cast("TextIO", _Output(sys.stderr)),
        )
        changed.enter_context(contextlib.redirect_stdout(out))
        changed.enter_context(contextlib.redirect_stderr(err))
        yield


def _reconfigure(stream: io.TextIOWrapper, errors: str) -> None:
    with contextlib.suppress(OSError):  # it flushes first
        stream.reconfigure(errors=errors)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    first = error.object[error.start]
    if first in _ASCII:
        return _ASCII[first], error.start + 1
    error.end = error.start + 1
    return codecs.backslashreplace_errors(error)


def is_utf8() -> bool:
    """Return True if stdout can encode every character."""
    return codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"


def tell(*lines: str) -> None:
    """Print lines that are not the result to stderr, if that can be written.

    Commands in a line that begins with "hint:" get the options of `with_config`; a
    cause may name a command that nobody is to run.
    A command that changes keys must not stop half-way because nobody reads this.
    """
    try:
        for line in lines:
            is_hint = line.startswith("hint:")
            click.echo(with_config(line) if is_hint else line, err=True)
    except OutputError:
        discard(sys.stderr)


def discard(*streams: TextIO) -> None:
    """Send what streams still hold to /dev/null, so that Python's exit is silent."""
    for stream in streams:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - quick to import
            os.dup2(nowhere.fileno(), stream.fileno())
        with contextlib.suppress(OSError):
            stream.flush()
