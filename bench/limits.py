"""Say what the direct path could reach at most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.common import SESSIONS

if TYPE_CHECKING:
    from bench.results import Results

STREAMS = 16  # requests at once, one for each session


def of_sessions(latency: float) -> float:
    """Return the rate of the sessions, each of which needs two C calls.

    Args:
        latency: Milliseconds of one C call, not 0.
    """
    return SESSIONS / (2 * latency / 1000)


def share_of_possible(results: Results, latency: float) -> float:
    """Return the direct path's rate of Encrypt as a share of what is possible.

    Possible is the smaller of the rate of the sessions and that of the empty handler.
    What was not measured makes it NaN.

    Args:
        results: The run.
        latency: Milliseconds of one C call.
    """
    most = _rate(results, "empty", 0)
    if latency:
        most = min(most, of_sessions(latency))
    return _rate(results, "token", latency) / most


def _rate(results: Results, path: str, latency: float) -> float:
    found = results.get(
        "rates", path=path, method="Encrypt", L=latency, streams=STREAMS
    )
    return found.median("rate") if found is not None else math.nan
