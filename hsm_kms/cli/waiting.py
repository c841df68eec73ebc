"""Repeat what `check` and `probe` do until nothing fails, for `--wait`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import click

from hsm_kms.cli.options import SECONDS_TYPE
from hsm_kms.cli.streams import tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.cli.report import Finding

PAUSE_SECONDS: Final = 1.0

wait_option = click.option(
    "--wait",
    "seconds",
    type=SECONDS_TYPE,
    metavar="DURATION",
    default="0",
    help="Retry until nothing fails, for at most this long (30s, 5m).",
)


class _Attempt(Protocol):
    """Say what failed; a `Report` does."""

    @property
    def failures(self) -> list[Finding]: ...


_A = TypeVar("_A", bound=_Attempt)


def until_well(attempt: Callable[[], _A], seconds: float) -> _A:
    """Return the first attempt without a failure, or the last one.

    What it waits for is printed on stderr whenever that changes.

    Args:
        attempt: Tries once, and prints nothing if others may follow.
        seconds: How long new attempts may begin.
    """
    until = time.monotonic() + seconds
    told = ""
    while True:
        ended = attempt()
        remaining = until - time.monotonic()
        if not ended.failures or remaining <= 0:
            return ended
        if (cause := ended.failures[0].text) != told:
            tell(f"waiting: {cause}")
            told = cause
        time.sleep(min(PAUSE_SECONDS, remaining))
