"""Decide, for every command, whether output has colours; and name what they mean.

Colours are for people on a terminal: click leaves them out elsewhere. They are left out
on a terminal, too, if NO_COLOR is set and not empty (no-color.org) or TERM is dumb. The
words and marks of the output always say the same without them.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Final

import click


class Tone(StrEnum):
    """Name what a coloured word tells."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    BAD = "bad"
    QUIET = "quiet"


_COLOURS: Final = {
    Tone.GOOD: "green",
    Tone.DOUBTFUL: "yellow",
    Tone.BAD: "red",
    Tone.QUIET: "bright_black",
}


def choice() -> bool | None:
    """Return False if colours are not wanted; None if the stream decides.

    This is what `click.Context.color` of all commands is set to.
    """
    unwanted = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return False if unwanted else None


def coloured(text: str, tone: Tone) -> str:
    """Return text with the colour of a tone, for `click.echo`."""
    return click.style(text, fg=_COLOURS[tone])
