"""Show on stderr how a migration stands, how long it will take and what limits it."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import click

from hsm_kms.cli.streams import tell
from hsm_kms.clock import spell
from hsm_kms.etcd.text import count_of
from hsm_kms.migrate.rewrite import Watcher

if TYPE_CHECKING:
    from types import TracebackType

    from hsm_kms.migrate.resources import Resource
    from hsm_kms.migrate.rewrite import Pace

REDRAW_SECONDS: Final = 0.1
LINE_SECONDS: Final = 10.0
_WINDOW_SECONDS: Final = 30.0  # over which the speed is measured
_WAITING: Final = 0.2  # share of the time in which --rate makes the migration wait


class _Sample(NamedTuple):
    at: float
    objects: int
    waited: float


class Progress(Watcher):
    """Show how the migration stands: on a terminal in one line, else in new lines.

    A thread draws, so that the progress is shown while the API server does not answer.

    Args:
        pace: Limit of the rate.
        line_seconds: Time between two lines if stderr is not a terminal.
    """

    def __init__(self, pace: Pace, line_seconds: float = LINE_SECONDS) -> None:
        self._pace = pace
        self._terminal = sys.stderr.isatty()
        self._every = REDRAW_SECONDS if self._terminal else line_seconds
        self._line_seconds = line_seconds
        self._resource = ""
        self._left: int | None = None
        self._of_resource = 0
        self._objects = 0
        self._start = self._sample()
        self._samples = deque([self._start])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Self:
        """Begin to show the progress."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to show the progress; after a long migration, sum it up."""
        self._ended.set()
        self._thread.join()
        now = self._sample()
        if self._terminal:
            with contextlib.suppress(OSError):
                _draw("")
        if now.at - self._start.at >= self._line_seconds:
            spent = spell(now.at - self._start.at)
            speed = self._speed(self._start, now)
            tell(f"{count_of(self._objects)} in {spent}, {speed}")

    def page(self, resource: Resource, objects: int, left: int | None) -> None:
        """Note that a page was listed."""
        if str(resource) != self._resource:
            self._resource, self._of_resource = str(resource), 0
        self._left = None if left is None else objects + left

    def done(self) -> None:
        """Note that one object is done."""
        self._objects += 1
        self._of_resource += 1
        if self._left is not None:
            self._left -= 1

    def _show(self) -> None:
        with contextlib.suppress(OSError):  # nobody reads stderr any more
            while not self._ended.wait(self._every):
                if self._resource:
                    self._show_once()

    def _show_once(self) -> None:
        if self._terminal:
            _draw(self._line())
        else:
            tell(self._line())

    def _line(self) -> str:
        now = self._sample()
        self._samples.append(now)
        while len(self._samples) > 2 and (  # noqa: PLR2004 - two make a distance
            now.at - self._samples[0].at > _WINDOW_SECONDS
        ):
            self._samples.popleft()
        before = self._samples[0]
        parts = [self._position(), self._speed(before, now)]
        objects = now.objects - before.objects
        if self._left and objects:
            seconds = self._left * (now.at - before.at) / objects
            parts.insert(1, f"{spell(seconds)} left")
        return ", ".join(parts)

    def _position(self) -> str:
        done, left = self._of_resource, self._left
        if left is None:
            return f"{self._resource}: {count_of(done)}"
        return f"{self._resource}: {done:,} of {count_of(done + left)}"

    def _speed(self, before: _Sample, now: _Sample) -> str:
        seconds = max(now.at - before.at, 0.001)
        objects = now.objects - before.objects
        waited = now.waited - before.waited
        if not objects:
            return "waiting for the API server"
        speed = f"{objects / seconds:.3g}/s"
        if waited / seconds >= _WAITING:
            return f"{speed}, limited by --rate {self._pace.rate:g}"
        each = (seconds - waited) * 1000 / objects
        return f"{speed}, limited by the API server ({each:.3g} ms per object)"

    def _sample(self) -> _Sample:
        return _Sample(time.monotonic(), self._objects, self._pace.waited)


def _draw(line: str) -> None:
    """Replace the last line of the terminal, which is cut to its width."""
    width = shutil.get_terminal_size().columns - 1
    click.echo(
        "\r" + line[:width].ljust(width) + ("" if line else "\r"), nl=False, err=True
    )
