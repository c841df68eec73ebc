"""Decide how a worker ends: one row for each reason.

`Workers.end` is the only way to end a worker that serves, and reads the row here. In
every row, calls that have run longer than `hang_timeout` are not waited for, and a
worker that does not leave within a second is killed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hsm_kms.token.process import Worker


class End(StrEnum):
    """Name the reason for the end of a worker; also a label in the metrics."""

    ASKED = "asked"  # the server stops or reloads, or a spare is not needed any more
    LOST = "lost"  # it crashed, or was killed from outside
    START = "start"  # it could not start, or not in time
    HANG = "hang"  # one call ran longer than hang_timeout
    CANARY = "canary"  # its canary failed
    RECYCLED = "recycled"  # a fresh worker sees more keys
    LOGIN = "login"  # it was logged out
    KEY = "key"  # another key has the names of a key that it holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Say how a worker ends.

    Args:
        drain: Longest time in seconds that calls under way may still run, once nothing
            new is lent; None for `token.call_timeout`, after which no request waits
            for them any more.
        kill: SIGKILL; else the worker is asked to close its sessions and to leave.
        counted: The kill counts against the budget of kills: some HSMs keep the
            sessions of a client that was killed.
        alone: Only while all other workers serve, so that two are never ended for
            this reason at once.
        replaced: Another worker takes its place: at once after a long life, else
            after the growing pauses of `token.restarts`.
    """

    drain: float | None
    kill: bool = False
    counted: bool = False
    alone: bool = False
    replaced: bool = True


ENDS: Final[Mapping[End, Ending]] = {
    # Says so: `Workers`, for a spare. `Workers.close` does not drain: the server has
    # let its requests end before.
    End.ASKED: Ending(drain=None, replaced=False),
    # Says so: the channel, which read its end. The process is gone, or talks nonsense.
    # Nobody ended it, so it is no kill of ours.
    End.LOST: Ending(drain=0.0, kill=True),
    # Says so: `Workers` after `start_timeout`, and `PinLogin` for a C_Login that does
    # not return. A worker that reports why it cannot start leaves in order.
    End.START: Ending(drain=0.0, kill=True, counted=True),
    # Says so: the watchdog. Its other sessions may still be answered.
    End.HANG: Ending(drain=1.0, kill=True, counted=True),
    # Says so: the health monitor. One error in a background call says little about
    # the calls under way.
    End.CANARY: Ending(drain=None),
    # Says so: the fresh-worker checks. The worker works, and can wait for its turn.
    End.RECYCLED: Ending(drain=None, alone=True),
    # Says so: the pool. C_Login holds for a whole process, so every session of it
    # answers CKR_USER_NOT_LOGGED_IN, and requests are made again elsewhere.
    End.LOGIN: Ending(drain=0.0),
    # Says so: the health monitor. Every worker may hold handles of the key that has
    # lost its names. Calls under way name the key they mean.
    End.KEY: Ending(drain=None),
}


class Keeper(Protocol):
    """Keep workers, and decide when and how one of them ends."""

    def end(self, worker: Worker, end: End, why: str) -> None:
        """End a worker as the row of `end` says.

        Args:
            worker: The worker.
            end: Why, for metrics.
            why: Why, for the log.
        """
