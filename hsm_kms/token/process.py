"""Start one worker process, exchange messages with it, and end it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import HsmKmsError, TokenTimeoutError, WorkerLostError
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
from hsm_kms.tasks import cancel_and_wait
from hsm_kms.token.channel import Channel
from hsm_kms.token.ends import ENDS, End
from hsm_kms.token.errors import error_from
from hsm_kms.token.spawn import spawn
from hsm_kms.token.stderr import Stderr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hsm_kms.token.counts import FunctionCounts
    from hsm_kms.token.ends import Keeper
    from hsm_kms.token.spawn import Spawned

LEAVE_SECONDS: Final = 1.0  # the worker itself takes half of it at most
_IDLE_SECONDS: Final = 0.4  # of LEAVE_SECONDS, for a call on the control session
KILL_SECONDS: Final = 1.0  # only a call that hangs in the kernel takes longer

_log = get_logger(__name__)


class Worker:
    """Hold a worker process and its channels; `Worker.spawn` makes one.

    Attributes:
        control: The channel for discovery, canaries and key generation.
        sessions: The channels that wrap and unwrap.
        born: When the process was started, in the loop's time.
        retiring: No new call is put on the sessions; the worker is about to end.
        lost: Set when the process is gone or is being ended.
        end: Why the worker ended, for metrics; None while it serves.
        reason: Why the worker ended, for the log.
        killed: The worker had to be killed; some HSMs keep the sessions of such a one.
    """

    def __init__(
        self,
        spawned: Spawned,
        keeper: Keeper | None = None,
        functions: FunctionCounts | None = None,
    ) -> None:
        self.control, *self.sessions = (
            Channel(pair, self._lost, self.retire, functions) for pair in spawned.pairs
        )
        self.lost = asyncio.Event()
        self.end: End | None = None
        self.reason = ""
        self.killed = False
        self.retiring = False
        self.born = asyncio.get_running_loop().time()
        self.started: Started | None = None
        self._process = spawned.process
        self._keeper = keeper
        self._killer = spawned.killer
        self._stderr = Stderr(spawned.stderr, self.pid)
        self._watching = asyncio.create_task(self._watch())

    @property
    def pid(self) -> int:
        """Return the process ID of the worker."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """Return True if the process has ended."""
        return self._process.returncode is not None

    async def wait_until_gone(self) -> None:
        """Wait until the process has ended."""
        await self._process.wait()

    @property
    def leaving(self) -> bool:
        """Return True if the worker is ended in order: not killed, and not lost."""
        return self.retiring and (self.end is None or not ENDS[self.end].kill)

    @property
    def token_serial(self) -> str:
        """Return the token's serial number; "" before the worker is configured."""
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
        functions: FunctionCounts | None = None,
    ) -> Worker:
        """Exec a worker with a control pair and `sessions` more pairs.

        Args:
            sessions: Number of session channels.
            env: Added to this process's environment, for the vendor's module.
            pass_fds: More descriptors that the worker inherits.
            keeper: Decides how the worker ends; None for a worker that stands alone.
            functions: Counts the calls of each function of the module.

        Raises:
            WorkerLostError: The machine has no process or descriptor left.
        """
        spawned = await spawn(sessions, env, pass_fds)
        return cls(spawned, keeper, functions)

    async def configure(self, request: Configure) -> Started:
        """Have the worker load the module and choose the token.

        Raises:
            HsmKmsError: The worker could not.
        """
        try:
            reply = await self.control.exchange(request)
        except WorkerLostError as error:
            raise await self._why_never_started(error) from None
        if not isinstance(reply, Started):
            raise _unexpected(reply)
        self.started = reply
        return reply

    async def _why_never_started(self, error: WorkerLostError) -> WorkerLostError:
        """Return the reason that Python gave, if it could not run the worker at all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECONDS):
                await self._process.wait()
        reason = self._stderr.python_error()
        if not reason:
            return error
        return WorkerLostError(
            f"the token worker cannot start: {reason}",
            hint=f"hsm-kms runs its workers by {sys.executable}: restart hsm-kms if "
            "that was upgraded, or else install hsm-kms into a virtual environment",
        )

    async def open_sessions(self, channels: Sequence[Channel]) -> list[Channel]:
        """Open a session on each of these channels, one after the other.

        Returns:
            The channels that have a session: fewer if the token grants no more.

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
        """Open a session on one channel; return the error, or None if that worked."""
        reply = await channel.exchange(OpenSession())
        return error_from(reply) if isinstance(reply, Failure) else None

    async def ask(self, request: Request, seconds: float) -> Reply:
        """Make one exchange on the control channel and return the reply.

        Args:
            request: The request.
            seconds: Longest wait.

        Raises:
            TokenTimeoutError: There was no reply in time, or an earlier exchange is
                still under way. The worker may hang; the watchdog decides that.
            HsmKmsError: The worker answered with an error.
        """
        if self.control.busy_since is not None:
            raise TokenTimeoutError(
                "an earlier call on the control session is still running"
            )
        try:
            async with asyncio.timeout(seconds):
                # After that the channel stays busy until the reply is read.
                reply = await self.control.exchange(request)
        except TimeoutError:
            raise TokenTimeoutError(
                f"the token did not answer within {seconds:g} s",
                hint="see whether the HSM and its client service are up",
            ) from None
        if isinstance(reply, Failure):
            raise error_from(reply)
        return reply

    def lend_no_more(self) -> None:
        """Let calls under way finish, and put no new ones on the sessions."""
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
        """End the worker now; only its keeper calls this.

        A worker that the row of `end` does not kill is asked to leave by `leave`, which
        the keeper calls when `lost` is set. The first reason is kept.
        """
        self.lend_no_more()
        self._mark_lost(end, reason)
        how = ENDS[end]
        if how.kill:
            self._kill(counted=how.counted)

    async def leave(self) -> None:
        """Ask the worker to close its sessions and exit; kill it if that takes 1 s."""
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
        await cancel_and_wait(self._watching)
        self._stderr.close()
        self._killer.close()

    async def _say_leave(self) -> None:
        """Send `Leave` on the control channel, after a canary that may run there."""
        async with asyncio.timeout(_IDLE_SECONDS):
            await self.control.idle()
        self.control.exchange(Leave())

    def _kill(self, *, counted: bool) -> None:
        """Send SIGKILL; a caller that waits for an answer gets `WorkerLostError`."""
        if counted and self.end is not End.LOST:  # a lost worker is gone already
            self.killed = True
        self._killer.kill()
        for channel in (self.control, *self.sessions):
            channel.close()

    async def _watch(self) -> None:
        """Notice the end of the process.

        The channels read the end of their pairs, and do so first; but a child that the
        module started without exec holds the worker's ends open.
        """
        await self._process.wait()
        self._lost("the worker process ended")

    def _lost(self, why: str) -> None:
        self.retire(End.LOST, why)

    def _mark_lost(self, end: End, reason: str = "") -> None:
        if not self.lost.is_set():
            self.end = end
            self.reason = reason
            self.lost.set()


def _unexpected(reply: Reply) -> HsmKmsError:
    if isinstance(reply, Failure):
        return error_from(reply)
    return WorkerLostError("the token worker sent a reply of the wrong kind")
