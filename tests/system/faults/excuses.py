"""When requests to a server may fail, and with which codes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.system.faults.load import EXCUSED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.system.faults.load import Answer

# While the current key is missing, requests are refused until it is back.
CODES = EXCUSED | {"FAILED_PRECONDITION"}


@dataclass
class Excuses:
    """Keep when something was wrong, in `time.monotonic()` seconds.

    Args:
        troubles: From when to when any request may fail; the last may go on.
        kills: When a worker was killed: only a call under way may fail.
        stops: From when to when the server stopped.
    """

    troubles: list[tuple[float, float]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    stops: list[tuple[float, float]] = field(default_factory=list)
    _since: float | None = None

    def begin(self) -> None:
        """From now on any request may fail."""
        if self._since is None:
            self._since = time.monotonic()

    def end(self) -> None:
        """All is well again."""
        if self._since is not None:
            self.troubles.append((self._since, time.monotonic()))
            self._since = None

    def missing(self, failures: Iterable[Answer]) -> list[Answer]:
        """Return the failures that nothing excuses."""
        return [one for one in failures if not self._excuse(one)]

    def _excuse(self, answer: Answer) -> bool:
        if _during(answer, self.stops) and answer.code == "CANCELLED":
            return True  # gRPC cancels what arrives while the server stops
        cut = any(answer.began < moment < answer.ended for moment in self.kills)
        return answer.code in CODES and (cut or _during(answer, self.troubles))


def _during(answer: Answer, times: Iterable[tuple[float, float]]) -> bool:
    return any(a <= answer.ended and answer.began <= b for a, b in times)
