"""Show how much of the stored values has been read."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hsm_kms.etcd.source import Item, Source

_BAR_CHARS: Final = 36
_REDRAW_SECONDS: Final = 0.1


@contextlib.contextmanager
def progress_bar(source: Source, doing: str) -> Iterator[Callable[[Item], None]]:
    """Show a progress bar if stderr is a terminal; yield what to call with each item.

    Args:
        source: Source, open, which knows how much of it has been read.
        doing: Verb for the bar, such as "scanning".
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    bar = _Bar(source, doing)
    try:
        yield bar.step
    finally:
        bar.draw()
        click.echo(err=True)


class _Bar:
    """Show the progress in one line, redrawn at most ten times a second."""

    def __init__(self, source: Source, doing: str) -> None:
        self._source = source
        self._doing = doing
        self._items = 0
        self._due = 0.0

    def step(self, _: Item) -> None:
        """Count one more item."""
        self._items += 1
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _REDRAW_SECONDS
            self.draw()

    def draw(self) -> None:
        """Draw the line, without a bar if the total is unknown."""
        words = [self._doing]
        share = self._source.share()
        if share is not None:
            done = min(_BAR_CHARS, round(share * _BAR_CHARS))
            words.append(f"[{'#' * done}{'-' * (_BAR_CHARS - done)}]")
            words.append(f"{min(1.0, share):4.0%}")
        words.append(f"{self._items:,} objects")
        # A longer line would wrap, and could not be drawn over.
        width = shutil.get_terminal_size().columns - 1
        click.echo("\r" + "  ".join(words)[:width], nl=False, err=True)
