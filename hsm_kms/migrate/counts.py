"""What became of the objects."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

MAX_LISTED: Final = 50
"""Refused objects that are named; more are only counted."""


class Outcome(StrEnum):
    """What became of one object."""

    REWRITTEN = "rewritten"
    UP_TO_DATE = "up_to_date"  # stored already as the API server would store it now
    ACCEPTED = "accepted"  # in a dry run
    GONE = "gone"  # deleted meanwhile
    REFUSED = "refused"


class Refused(msgspec.Struct, frozen=True):
    """One object that was not written.

    Args:
        object: namespace/name, or name.
        why: Holds nothing of what is in it.
    """

    object: str
    why: str


class Counts(msgspec.Struct):
    """What became of the objects of one resource.

    Args:
        outcomes: How many of each.
        refusals: Those that were refused; not more than fit in `MAX_LISTED`.
    """

    outcomes: dict[Outcome, int] = {}
    refusals: list[Refused] = []

    @property
    def objects(self) -> int:
        """How many there were."""
        return sum(self.outcomes.values())

    def of(self, outcome: Outcome) -> int:
        """How many of one kind."""
        return self.outcomes.get(outcome, 0)

    def add(self, outcome: Outcome) -> None:
        """Count one object."""
        self.outcomes[outcome] = self.of(outcome) + 1
