"""Make text from etcd safe to show, and write numbers of objects."""

from __future__ import annotations


def printable(text: str, most: int = 120) -> str:
    """Return text in a form that is safe for a terminal: ASCII, one line, limited.

    Args:
        text: Any text; other characters are escaped.
        most: Most characters of `text` to show; the rest is replaced by "...".
    """
    cut = text[:most]
    shown = "".join(char if " " <= char <= "~" else _escaped(char) for char in cut)
    return shown + ("..." if len(text) > most else "")


def count_of(count: int, of: str = "object") -> str:
    """Return a number of things in words, such as "1 object" or "2,000 objects"."""
    return f"{count:,} {of}" + "s" * (count != 1)


def text_of(data: bytes) -> str:
    """Return bytes as text; bytes that are not UTF-8 are shown in hexadecimal."""
    return data.decode("utf-8", "backslashreplace")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
