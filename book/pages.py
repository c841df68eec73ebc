"""Say which pages have generated parts, and what is in these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from book import commands, configuration
from book.marked import ROOT, regenerate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES: Final = ("configuration.md", "command-line.md")


def regenerated() -> Iterator[tuple[Path, str]]:
    """Yield each page with generated parts, and its text as it should be."""
    for name in PAGES:
        path = ROOT / "docs" / name
        yield path, regenerate(path.read_text(), _part)


def _part(what: str, old: str) -> str:
    if what == "the commands":
        return commands.reference()
    return configuration.tables(what, old)
