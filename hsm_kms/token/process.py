"""One worker process: start it, talk to it, see it go, end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import structlog

from hsm_kms.errors import (
    HsmKmsError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.token.channel import Channel
from hsm_kms.token.faults import error_from
from hsm_kms.worker.messages import (
    Configure,
    Failure,
    Leave,
    OpenSession,
    Reply,
    Request,
    Started,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEAVE_SECONDS: Final = 1.0  # the worker itself takes half of it at most
_STDERR_LINES: Final = 20  # of a worker's life, so that a chatty module stays quiet
_STDERR_BYTES: Final = 200  # of each line

_log = structlog.get_logger(__name__)


class Worker:
    """A worker process and its channels; made by `Worker.spawn`.

    Attributes:
        control: The channel for discovery, canaries and generation.
        sessions: The channels that wrap and unwrap.
        born: When it was started, in the loop's time.
        retiring: Nothing new is lent from it; it is about to be ended.
        lost: Set when the process is gone or is being ended; nothing is lent then.
        reason: Why, for log and metrics.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, pairs: Sequence[socket.socket]
    ) -> None:
        self.control, *self.sessions = (Channel(pair, self._lost) for pair in pairs)
        self.lost = asyncio.Event()
        self.reason = ""
        self.retiring = False
        self.born = asyncio.get_running_loop().time()
        self.started: Started | None = None
        self._process = process
        # asyncio's own kill() may reap the child behind its watcher's back.
        self._pidfd: int | None = os.pidfd_open(process.pid)
        self._listening = asyncio.create_task(self._listen())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @classmethod
    async def spawn(
        cls, sessions: int, env: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> Worker:
        """Exec a worker with a control pair and `sessions` more pairs.

        Args:
            sessions: How many session channels.
            env: Added to this process's environment, for the vendor's module.
            pass_fds: More descriptors that the worker inherits.
        """
        # From the main thread: the parent-death signal follows the spawning thread.
        pairs = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for _ in range(1 + sessions)
        ]
        theirs = [pair[1] for pair in pairs]
        numbers = [other.fileno() for other in theirs]
        command = [sys.executable, "-I", "-m", "hsm_kms.worker", str(os.getpid())]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *map(str, numbers),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[*numbers, *pass_fds],
                env={**os.environ, **env},
            )
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for other in theirs:
                other.close()
        return cls(process, [ours for ours, _ in pairs])

    async def configure(self, request: Configure) -> Started:
        """Load the module and choose the token.

        Raises:
            HsmKmsError: What the worker said.
        """
        reply = await self.control.exchange(request)
        if not isinstance(reply, Started):
            raise _unexpected(reply)
        self.started = reply
        return reply

    async def open_sessions(self, channels: Sequence[Channel]) -> list[Channel]:
        """C_OpenSession on these session channels, one after the other.

        Returns:
            The channels that got one: fewer where the token has no more.

        Raises:
            HsmKmsError: Not even one could be opened.
        """
        opened: list[Channel] = []
        for channel in channels:
            reply = await channel.exchange(OpenSession())
            if isinstance(reply, Failure):
                if not opened:
                    raise error_from(reply)
                _log.warning(
                    "token opens no more sessions",
                    opened=len(opened),
                    wanted=len(channels),
                    error=reply.detail,
                )
                break
            opened.append(channel)
        return opened

    async def ask(self, request: Request, seconds: float) -> Reply:
        """One exchange on the control channel, waited for at most `seconds`.

        Raises:
            TokenTimeoutError: No answer in time, or another control exchange is
                still under way: the worker may be hung, and is left alone.
            HsmKmsError: What the worker said.
        """
        if self.control.busy_since is not None:
            raise TokenTimeoutError("an earlier call on the control session still runs")
        future = self.control.exchange(request)
        try:
            async with asyncio.timeout(seconds):
                reply = await asyncio.shield(future)
        except TimeoutError:
            raise TokenTimeoutError(
                f"the token did not answer within {seconds:g} s",
                hint="see whether the HSM and its client service are up",
            ) from None
        if isinstance(reply, Failure):
            raise error_from(reply)
        return reply

    def retire(self, reason: str) -> None:
        """Have it replaced: whoever keeps it sees `lost` and lets it leave."""
        self.retiring = True
        self._end(reason)

    async def leave(self) -> None:
        """Ask the worker to close its sessions and exit; kill it if it does not."""
        self._end("asked to leave")
        for channel in self.sessions:
            channel.close()
        if self.control.busy_since is not None:
            self.kill("its control session is busy")
        elif not self.control.closed:
            self.control.exchange(Leave())
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self.kill("did not leave in time")
        self.control.close()
        await self._process.wait()
        await self._listening
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def kill(self, reason: str) -> None:
        """SIGKILL; whoever waits for an answer gets `WorkerLostError`."""
        self._end(reason)
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        for channel in (self.control, *self.sessions):
            channel.close()

    def _lost(self, why: str) -> None:
        self.kill(f"lost: {why}")

    def _end(self, reason: str) -> None:
        if not self.lost.is_set():
            self.reason = reason
            self.lost.set()

    async def _listen(self) -> None:
        """Log the first lines that module and python-pkcs11 print, drop the rest."""
        stream = self._process.stderr
        if stream is None:
            return
        lines = 0
        rest = b""
        while chunk := await stream.read(4096):
            *complete, rest = (rest + chunk).split(b"\n")
            rest = rest[:_STDERR_BYTES]
            for line in complete:
                lines += 1
                if lines <= _STDERR_LINES:
                    text = line[:_STDERR_BYTES].decode("utf-8", "replace")
                    _log.debug("worker stderr", pid=self.pid, text=text)


def _unexpected(reply: Reply) -> HsmKmsError:
    if isinstance(reply, Failure):
        return error_from(reply)
    return WorkerLostError("the token worker gave an answer of the wrong kind")
