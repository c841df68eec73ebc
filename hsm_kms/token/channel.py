"""One SOCK_SEQPACKET pair to one session thread; one request under way at a time.

1. Every request has a number and the answer repeats it; any other number means that
   the two ends disagree, and the channel is lost.
2. Who waits for an answer may give up; the answer is read all the same, and only
   then is the channel idle again. So nobody ever gets an answer that is not his.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms.errors import WorkerLostError
from hsm_kms.ipc import framing

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.token.ends import End

_POLL_SECONDS: Final = 0.01

# One for all channels: what is read into it is decoded, which copies, before the
# loop can read again.
_incoming = memoryview(bytearray(framing.MAX_MESSAGE_BYTES))


class Channel:
    """The server's end of a pair.

    Args:
        pair: Our socket.
        on_lost: Called once when the other end is gone or talks nonsense.
        on_retire: Called when the worker behind it turned out to be of no use.

    Attributes:
        busy_since: The loop's time when the call under way began, or None.
        retiring: Nothing new is lent on it; a call under way may finish.
    """

    def __init__(
        self,
        pair: socket.socket,
        on_lost: Callable[[str], None],
        on_retire: Callable[[End], None] | None = None,
    ) -> None:
        pair.setblocking(False)
        self._pair = pair
        self._on_lost = on_lost
        self._on_retire = on_retire
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._waiting: asyncio.Future[Reply] | None = None
        self._closed = False
        self.busy_since: float | None = None
        self.retiring = False
        self._loop.add_reader(pair.fileno(), self._readable)

    @property
    def lendable(self) -> bool:
        """Whether a new request may go out on it."""
        return not (self._closed or self.retiring)

    def exchange(self, request: Request) -> asyncio.Future[Reply]:
        """Send a request; the future gets its reply.

        Shield it before waiting with a deadline: cancelling the future itself would
        not stop the call in the module.

        Raises:
            WorkerLostError: The worker is gone; also set on the future later.
        """
        if self._closed:
            raise WorkerLostError("the token worker is gone")
        if self._waiting is not None:
            raise AssertionError("a channel carries one request at a time")
        datagram = framing.pack(self._number + 1, request)
        self._number += 1
        self._waiting = self._loop.create_future()
        self.busy_since = self._loop.time()
        future = self._waiting
        try:
            self._pair.send(datagram)
        except OSError:
            self._lose("its socket is closed")
        return future

    async def idle(self) -> None:
        """Wait until no call is under way."""
        # Not the future: who waits for it may have cancelled it; the call goes on.
        while self.busy_since is not None:  # noqa: ASYNC110 - seldom, and short
            await asyncio.sleep(_POLL_SECONDS)

    def retire(self, why: End) -> None:
        """Have the worker behind it replaced; its other sessions go with it."""
        self.retiring = True
        if self._on_retire is not None:
            self._on_retire(why)

    def close(self) -> None:
        """Close our end; whoever waits gets `WorkerLostError`."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._pair.fileno())
        self._pair.close()
        self._finish(WorkerLostError("the token worker is gone"))

    def _readable(self) -> None:
        try:
            length = self._pair.recv_into(_incoming)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            length = 0
        if not length:
            self._lose("it ended")
            return
        try:
            number, reply = framing.unpack_reply(_incoming[:length])
        except msgspec.MsgspecError:
            self._lose("it sent a message that is none")
            return
        finally:
            _incoming[:length] = bytes(length)  # a DEK may be in it
        if number != self._number or self._waiting is None:
            self._lose("it answered a request that was not asked")
            return
        self._finish(reply)

    def _finish(self, result: Reply | WorkerLostError) -> None:
        future, self._waiting = self._waiting, None
        self.busy_since = None
        if future is None or future.done():
            return
        if isinstance(result, WorkerLostError):
            future.set_exception(result)
            future.exception()  # seen: nobody may be waiting any more
        else:
            future.set_result(result)

    def _lose(self, why: str) -> None:
        self.close()
        self._on_lost(why)
