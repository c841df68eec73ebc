"""Exchange requests and replies with one session thread of a worker.

1. A channel carries one request at a time, over one SOCK_SEQPACKET pair.
2. Every request has a number and its reply repeats that number; any other number
   means that the two ends disagree, and the channel is lost.
3. Whoever sent a request may stop waiting for its reply. The reply is read all the
   same, and only then is the channel idle again: no caller ever gets the reply to
   another's request.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms.errors import WorkerLostError
from hsm_kms.ipc import framing
from hsm_kms.token.counts import FunctionCounts

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import TypeAlias

    from hsm_kms.ipc.messages import Reply, Request
    from hsm_kms.token.ends import End

    OnReply: TypeAlias = Callable[[Reply | WorkerLostError], None]

_POLL_SECONDS: Final = 0.01

# One buffer for all channels: no await from recv_into to the decoder, which copies, so
# no other channel can read into it in between.
_incoming = memoryview(bytearray(framing.MAX_MESSAGE_BYTES))


class Channel:
    """Hold the server's end of a pair.

    Args:
        pair: The server's socket.
        on_lost: Called once when the worker closed its end or broke the protocol.
        on_retire: Called when the worker behind the channel must be replaced.
        functions: Counts the calls of each function of the module.

    Attributes:
        busy_since: When the call under way began, in the loop's time; None if there
            is none.
        retiring: The pool lends the channel no more; a call under way may finish.
    """

    def __init__(
        self,
        pair: socket.socket,
        on_lost: Callable[[str], None],
        on_retire: Callable[[End], None] | None = None,
        functions: FunctionCounts | None = None,
    ) -> None:
        pair.setblocking(False)
        self._pair = pair
        self._on_lost = on_lost
        self._on_retire = on_retire
        self._functions = functions or FunctionCounts()
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._on_reply: OnReply | None = None
        self._closed = False
        self.busy_since: float | None = None
        self.retiring = False
        self._loop.add_reader(pair.fileno(), self._readable)

    @property
    def lendable(self) -> bool:
        """Return True if the pool may send a new request on this channel."""
        return not (self._closed or self.retiring)

    def send(self, request: Request, on_reply: OnReply) -> None:
        """Send a request.

        Args:
            request: The request.
            on_reply: Called once: with the reply, which may be a `Failure`, or with
                `WorkerLostError` if the worker goes first. The channel is idle then, so
                the next request may be sent from here.

        Raises:
            WorkerLostError: The worker is gone; `on_reply` is not called.
        """
        if self._closed:
            raise WorkerLostError("the token worker is gone")
        if self._on_reply is not None:
            raise AssertionError("a channel carries one request at a time")
        # No await from here to the send: the number, the callback and the datagram on
        # the wire always belong to the same request.
        datagram = framing.pack(self._number + 1, request)
        self._number += 1
        self._on_reply = on_reply
        self.busy_since = self._loop.time()
        try:
            self._pair.send(datagram)
        except OSError:
            self._lose("the worker receives no more")

    def exchange(self, request: Request) -> asyncio.Future[Reply]:
        """Send a request and return a future for its reply.

        Cancelling the future does not stop the call in the module; the channel is busy
        until the reply, which is then dropped.

        Raises:
            WorkerLostError: The worker is gone; also set on the future if the worker
                goes later.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        self.send(request, partial(_settle, future))
        return future

    async def idle(self) -> None:
        """Wait until no call is under way."""
        while self.busy_since is not None:  # noqa: ASYNC110 - seldom, and short
            await asyncio.sleep(_POLL_SECONDS)

    def retire(self, why: End) -> None:
        """Have the worker behind this channel replaced, with all its sessions."""
        self.retiring = True
        if self._on_retire is not None:
            self._on_retire(why)

    def close(self) -> None:
        """Close the server's end; a caller that waits gets `WorkerLostError`."""
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
            self._lose("the worker closed its end")
            return
        try:
            number, reply, spent = framing.unpack_reply(_incoming[:length])
        except msgspec.MsgspecError:
            self._lose("the worker sent a malformed message")
            return
        finally:
            _incoming[:length] = bytes(length)  # a DEK may be in it
        if number != self._number or self._on_reply is None:
            self._lose("the worker answered a request that was not sent")
            return
        self._functions.add(spent)
        self._finish(reply)

    def _finish(self, result: Reply | WorkerLostError) -> None:
        on_reply, self._on_reply = self._on_reply, None
        self.busy_since = None
        if on_reply is not None:
            on_reply(result)

    def _lose(self, why: str) -> None:
        self.close()
        self._on_lost(why)


def _settle(future: asyncio.Future[Reply], result: Reply | WorkerLostError) -> None:
    if future.done():  # its caller has cancelled it
        return
    if isinstance(result, WorkerLostError):
        future.set_exception(result)
        future.exception()  # mark as seen: its caller may have given up
    else:
        future.set_result(result)
