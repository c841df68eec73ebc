"""Say what the direct path could reach at most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.common import SESSIONS

if TYPE_CHECKING:
    from bench.results import Results


def possible(results: Results, latency: float, streams: float = 16) -> float:
    """Return the rate that the direct path could reach.

    That is the smaller of the rate of the sessions, each of which needs two C calls,
    and the rate of the empty handler.

    Args:
        results: The run.
        latency: Milliseconds of one C call.
        streams: Requests at once.
    """
    empty = results.get("rates", path="empty", method="Encrypt", L=0, streams=streams)
    most = empty.median("rate") if empty is not None else math.nan
    busy = min(SESSIONS, streams)
    return min(most, busy / (2 * latency / 1000)) if latency else most
