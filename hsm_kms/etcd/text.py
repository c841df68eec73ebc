"""Text that came from etcd, made fit to be shown."""

from __future__ import annotations


def printable(text: str, most: int = 120) -> str:
    """Text from etcd as a terminal may show it: ASCII, one line, not endless.

    Args:
        text: Any.
        most: Characters shown at most; the rest is dropped, with "..." for it.
    """
    cut = text[:most]
    shown = "".join(char if " " <= char <= "~" else _escaped(char) for char in cut)
    return shown + ("..." if len(text) > most else "")


def text_of(data: bytes) -> str:
    """Bytes from etcd as text; bytes that are not UTF-8 stand there in hexadecimal."""
    return data.decode("utf-8", "backslashreplace")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
