"""Log workers in, one at a time.

Every worker, every restart and every command logs in by itself. All processes of this
node take one lock in the state directory around C_Login, so that a PIN no token has
accepted yet is tried by one process alone, and the first rejection stops all others.
`token.pin_file` says if the PIN file can be used, `token.pin_verdict` if the PIN may be
tried.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import astuple

from hsm_kms.audit.events import Pin
from hsm_kms.audit.port import UNAUDITED
from hsm_kms.errors import HsmKmsError, PinRejectedError, WorkerLostError
from hsm_kms.ipc import ckr
from hsm_kms.ipc.messages import Failure, Login
from hsm_kms.state_dir.directory import SAVE_SECONDS
from hsm_kms.tasks import outlast
from hsm_kms.token.ends import End
from hsm_kms.token.errors import error_from
from hsm_kms.token.pin_file import REPLACE_CREDENTIAL, credential_of
from hsm_kms.token.pin_verdict import PinVerdict

if TYPE_CHECKING:
    from typing import Literal

    from hsm_kms.audit.port import Audit
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.state_dir.records import PinIdentity
    from hsm_kms.token.pin_file import PinSource
    from hsm_kms.token.process import Worker

_LOCK_POLL_SECONDS: Final = 0.05
_LOGIN_END_SECONDS: Final = 1.5  # for a C_Login under way, of the 3 s of a shutdown
_ABANDON_SECONDS: Final = 0.5  # a disk that hangs must not keep the process


class PinLogin:
    """Log workers in.

    Args:
        source: The PIN, or None if the token wants no login.
        state: Holds the lock and the verdict.
        retry: The operator vouches for the PIN: try it once, whatever is recorded.
        audit: Records each login that reached the token.

    Attributes:
        verdict: Knows if the PIN may be tried.
    """

    def __init__(
        self,
        source: PinSource | None,
        state: StateDir,
        *,
        retry: bool = False,
        audit: Audit = UNAUDITED,
    ) -> None:
        self._source = source
        self._audit = audit
        self._retry = retry
        self._state = state
        self.verdict = PinVerdict(source, state, retry=retry)

    async def check(self) -> None:
        """Find out without a worker if a login could be tried now.

        Raises:
            PinUnavailableError: There is no PIN to try yet, or it may not be tried.
            PinRejectedError: The token rejected this PIN before.
            StateWriteError: The disk of the state directory does not answer.
        """
        if not self._state.writable:  # it may have been mended
            await self._state.background(self._state.open, SAVE_SECONDS)
        self.verdict.check()

    async def login(self, worker: Worker) -> bool:
        """Log the worker's process in; return False if the token wants no login.

        Raises:
            PinUnavailableError: There is no PIN to try yet, or it may not be tried.
            PinRejectedError: The token rejects the PIN, now or before.
            HsmKmsError: The token failed otherwise.
        """
        source = self._source
        if source is None:
            return False
        if not self._has_state():  # then there is nothing to lock
            await self._see_through(worker, source)
            return True
        while True:
            with self._state.pin_lock() as acquired:
                if acquired:
                    await self._see_through(worker, source)
                    return True
            await asyncio.sleep(_LOCK_POLL_SECONDS)

    def _has_state(self) -> bool:
        return os.path.isdir(self._state.path)  # noqa: PTH112 - Path.is_dir may raise

    async def _see_through(self, worker: Worker, source: PinSource) -> None:
        """Log in; when cancelled, let a C_Login under way end and record its result.

        SoftHSM rewrites the token's file in C_Login: a worker that is killed inside it
        can leave that file empty, and the token is lost.
        """
        # A task of its own: a cancelled caller must not cancel what records the result.
        task = asyncio.ensure_future(self._login(worker, source))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # The PIN lock is held until this has ended, however often it is cancelled.
            await outlast(asyncio.ensure_future(_end_login(task, worker)))
            raise

    async def _login(self, worker: Worker, source: PinSource) -> None:
        if source.typed:
            await self._exchange(worker, source, None, refuse_low=False)
            return
        # Each result is on the disk before anything else happens: the try before it is
        # made, and its outcome before another process may try.
        write = self._state.background
        before = await write(partial(self.verdict.begin, source))
        if self._retry:
            self._record("cleared", source, None)
        low = self.verdict.refuses_low(before)
        if worker.lost.is_set():  # while the disk was slow: the PIN was not tried
            await write(partial(self.verdict.give_back, before))
            raise WorkerLostError("the worker ended before the login")
        try:
            await self._exchange(worker, source, before.identity, refuse_low=low)
        except PinRejectedError as error:
            await write(partial(self.verdict.reject, before, error))
            raise
        except WorkerLostError:
            raise  # the worker may have died inside C_Login: the try is used up
        except HsmKmsError as error:
            await write(partial(self.verdict.undo, before, error))
            raise
        await write(partial(self.verdict.accept, before))

    async def _exchange(
        self,
        worker: Worker,
        source: PinSource,
        identity: PinIdentity | None,
        *,
        refuse_low: bool,
    ) -> None:
        """Have the worker log in, and record how that ended."""
        try:
            await _exchange(worker, source, identity, refuse_low=refuse_low)
        except PinRejectedError as error:
            self._record("rejected", source, worker, error)
            raise
        except HsmKmsError as error:
            self._record("failed", source, worker, error)
            raise
        self._record("accepted", source, worker)

    def _record(
        self,
        result: Literal["accepted", "rejected", "failed", "cleared"],
        source: PinSource,
        worker: Worker | None,
        error: HsmKmsError | None = None,
    ) -> None:
        rv = error.rv if error is not None else None
        self._audit.record(
            Pin(
                result=result,
                pin_file=None if source.typed else str(source.path),
                worker=worker.pid if worker is not None else None,
                function=(error.function or None) if error is not None else None,
                ckr=ckr.name(rv) if rv is not None else None,
            )
        )


async def _end_login(task: asyncio.Future[None], worker: Worker) -> None:
    """Wait for a login whose caller was cancelled; kill the worker if it takes long."""
    done, _ = await asyncio.wait([task], timeout=_LOGIN_END_SECONDS)
    if not done:
        worker.retire(End.START, "interrupted inside C_Login")
        await asyncio.wait([task], timeout=_ABANDON_SECONDS)
    if task.done() and not task.cancelled():
        task.exception()  # mark it as seen


async def _exchange(
    worker: Worker, source: PinSource, identity: PinIdentity | None, *, refuse_low: bool
) -> None:
    request = Login(
        pin_file=str(source.path),
        identity=None if identity is None else astuple(identity),
        user_type=source.user_type,
        refuse_low=refuse_low,
    )
    reply = await worker.control.exchange(request)
    if not isinstance(reply, Failure):
        return
    error = error_from(reply)
    if isinstance(error, PinRejectedError):
        where = "" if source.typed else f" in {source.path}"
        error.args = (f"the token rejected the PIN{where}: {error}",)
        if not source.typed and credential_of(source.path):
            error.hint = REPLACE_CREDENTIAL
    raise error
