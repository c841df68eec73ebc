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

from hsm_kms.errors import (
    HsmKmsError,
    TokenTimeoutError,
    WorkerLostError,
)
from hsm_kms.ipc.messages import (
    Configure,
    Failure,
    Leave,
    OpenSession,
    Reply,
    Request,
    Started,
)
from hsm_kms.log import get_logger
from hsm_kms.token.channel import Channel
from hsm_kms.token.ends import ENDS, End
from hsm_kms.token.errors import error_from
from hsm_kms.token.stderr import Stderr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hsm_kms.token.ends import Keeper

LEAVE_SECONDS: Final = 1.0  # the worker itself takes half of it at most
_IDLE_SECONDS: Final = 0.4  # of them, for a call on the control session to end
KILL_SECONDS: Final = 1.0  # longer takes only a call that hangs in the kernel

_log = get_logger(__name__)


class Worker:
    """A worker process and its channels; made by `Worker.spawn`.

    Attributes:
        control: The channel for discovery, canaries and generation.
        sessions: The channels that wrap and unwrap.
        born: When it was started, in the loop's time.
        retiring: Nothing new is lent from it; it is about to be ended.
        lost: Set when the process is gone or is being ended; nothing is lent then.
        end: Why, for metrics; None while it serves.
        reason: Why, for the log.
        killed: It had to be; on some HSMs its sessions stay behind.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        pairs: Sequence[socket.socket],
        stderr: int,
        pidfd: int,
        keeper: Keeper | None = None,
    ) -> None:
        self.control, *self.sessions = (
            Channel(pair, self._lost, self.retire) for pair in pairs
        )
        self.lost = asyncio.Event()
        self.end: End | None = None
        self.reason = ""
        self.killed = False
        self.retiring = False
        self.born = asyncio.get_running_loop().time()
        self.started: Started | None = None
        self._process = process
        self._keeper = keeper
        # asyncio's own kill() may reap the child behind its watcher's back.
        self._pidfd: int | None = pidfd
        self._stderr = Stderr(stderr, process.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def token_serial(self) -> str:
        """Serial number of its token, "" before it is configured."""
        token = self.started.token if self.started else None
        return token.serial if token else ""

    @classmethod
    async def spawn(
        cls,
        sessions: int,
        env: Mapping[str, str],
        *,
        pass_fds: Sequence[int] = (),
        keeper: Keeper | None = None,
    ) -> Worker:
        """Exec a worker with a control pair and `sessions` more pairs.

        Args:
            sessions: How many session channels.
            env: Added to this process's environment, for the vendor's module.
            pass_fds: More descriptors that the worker inherits.
            keeper: Decides how the worker ends; None for a worker that stands alone.

        Raises:
            WorkerLostError: This machine has no process or descriptor left.
        """
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            try:
                stderr, their_stderr = os.pipe()
                ours.callback(os.close, stderr)
                theirs.callback(os.close, their_stderr)
                pairs = [_pair(ours, theirs) for _ in range(1 + sessions)]
                numbers = [other.fileno() for _, other in pairs]
                # From the main thread: the parent-death signal follows the thread.
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-m", "hsm_kms.worker"),
                    *map(str, (os.getpid(), *numbers)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=their_stderr,
                    pass_fds=[*numbers, *pass_fds],
                    env={**os.environ, **env},
                )
                # Should this fail, the worker sees its pairs close, and leaves.
                pidfd = os.pidfd_open(process.pid)
            except OSError as error:
                raise WorkerLostError(
                    f"a token worker cannot be started: {error.strerror}"
                ) from None
            ours.pop_all()
        return cls(process, [mine for mine, _ in pairs], stderr, pidfd, keeper)

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
            failure = await self.open_session(channel)
            if failure is None:
                opened.append(channel)
                continue
            if not opened:
                raise failure
            _log.warning(
                "token opens no more sessions",
                opened=len(opened),
                wanted=len(channels),
                error=str(failure),
            )
            break
        return opened

    async def open_session(self, channel: Channel) -> HsmKmsError | None:
        """C_OpenSession on one session channel; what the worker said against it."""
        reply = await channel.exchange(OpenSession())
        return error_from(reply) if isinstance(reply, Failure) else None

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

    def lend_no_more(self) -> None:
        """Calls under way may finish; the pool puts no new ones on its sessions."""
        self.retiring = True
        for channel in self.sessions:
            channel.retiring = True

    def retire(self, end: End, reason: str = "") -> None:
        """Have the worker ended by its keeper, as the row of `end` says."""
        if self._keeper is None:
            self.finish(end, reason)
        else:
            self._keeper.end(self, end, reason)

    def finish(self, end: End, reason: str = "") -> None:
        """End the worker now: only for its keeper, which sees `lost` and the exit.

        The first reason is kept. A worker that is not killed leaves by `leave`.
        """
        self.lend_no_more()
        self._mark_lost(end, reason)
        how = ENDS[end]
        if how.kill:
            self._kill(counted=how.counted)

    async def leave(self) -> None:
        """Ask the worker to close its sessions and exit; kill it if it does not."""
        self._mark_lost(End.ASKED)
        for channel in self.sessions:
            channel.close()
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._say_leave()
                await self._process.wait()
        except (TimeoutError, WorkerLostError):
            self._kill(counted=True)
        self.control.close()
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await self._process.wait()
        except TimeoutError:
            _log.error("token worker cannot be killed", pid=self.pid)
        self._stderr.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    async def _say_leave(self) -> None:
        """Ask on the control channel, once a canary that runs there is through."""
        async with asyncio.timeout(_IDLE_SECONDS):
            await self.control.idle()
        self.control.exchange(Leave())

    def _kill(self, *, counted: bool) -> None:
        """Send SIGKILL; a caller that waits for an answer gets `WorkerLostError`."""
        if counted and self.end is not End.LOST:  # a lost one is gone already
            self.killed = True
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        for channel in (self.control, *self.sessions):
            channel.close()

    def _lost(self, why: str) -> None:
        self.retire(End.LOST, why)

    def _mark_lost(self, end: End, reason: str = "") -> None:
        if not self.lost.is_set():
            self.end = end
            self.reason = reason
            self.lost.set()


def _pair(
    ours: contextlib.ExitStack, theirs: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours.enter_context(mine), theirs.enter_context(other)


def _unexpected(reply: Reply) -> HsmKmsError:
    if isinstance(reply, Failure):
        return error_from(reply)
    return WorkerLostError("the token worker gave an answer of the wrong kind")
