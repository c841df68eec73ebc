"""Hold the tries of requests, and queue those that wait for a session."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.token.channel import Channel


class Attempt:
    """Hold one try of a request: it waits for a session first, then for the answer.

    Args:
        request: The request.
        latest: Latest time for the answer, in the loop's time.
        before: Called just before the request is sent; None for nothing.
        answer: Ends the try: with a reply, an error, or by cancellation.

    Attributes:
        channel: The session that the call runs on; None before and after that.
        waits_since: When it began to wait for a session, in the loop's time.
    """

    __slots__ = ("answer", "before", "channel", "latest", "request", "waits_since")

    def __init__(
        self,
        request: Request,
        latest: float,
        before: Callable[[], None] | None,
        answer: asyncio.Future[Reply],
    ) -> None:
        self.request = request
        self.latest = latest
        self.before = before
        self.answer = answer
        self.channel: Channel | None = None
        self.waits_since = 0.0


class Queue:
    """Hold the tries that wait for a session, the longest waiting first."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Attempt, None] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of tries that have not ended yet."""
        return sum(not each.answer.done() for each in self._waiting)

    def add(self, attempt: Attempt) -> None:
        """Put a try at the end."""
        self._waiting[attempt] = None

    def discard(self, attempt: Attempt) -> None:
        """Take out a try that gives up, if it is there."""
        self._waiting.pop(attempt, None)

    def take(self) -> Attempt | None:
        """Take out the first try that has not ended; return None if there is none."""
        while self._waiting:
            attempt, _ = self._waiting.popitem(last=False)
            if not attempt.answer.done():  # a cancelled request may not have run yet
                return attempt
        return None
