"""Who may try the PIN, and when.

1. A PIN file that is absent, empty, younger than two seconds or open to others is
   waited for, not used.
2. A PIN no token has accepted yet is tried by one process at a time, under a lock in
   the state directory that every process of this node takes.
3. A PIN the token rejected is not tried again until the file changes. A process that
   died inside C_Login has used up a try, and there are two.
4. What cannot be remembered is not tried: without a writable state directory only a
   PIN already proven is used.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from msgspec.structs import astuple

from hsm_kms.errors import (
    HsmKmsError,
    PinRejectedError,
    WorkerLostError,
)
from hsm_kms.ipc.messages import Failure, Login
from hsm_kms.state_dir.records import PinRecord
from hsm_kms.token.ends import End
from hsm_kms.token.errors import error_from, may_mean_wrong_pin
from hsm_kms.token.pin_file import identify
from hsm_kms.token.pin_verdict import PinVerdict

if TYPE_CHECKING:
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.state_dir.records import PinIdentity
    from hsm_kms.token.pin_file import PinSource
    from hsm_kms.token.process import Worker

_LOCK_POLL_SECONDS: Final = 0.05
_LOGIN_END_SECONDS: Final = 1.5  # for a C_Login under way, of the 3 s of a stop


class PinLogin:
    """Logs workers in, and remembers what became of the PIN.

    Args:
        source: The PIN, or None where the token wants no login.
        state: Where the verdict is kept.
        retry: Somebody said that the PIN is right now: try it once, whatever was.
    """

    def __init__(
        self, source: PinSource | None, state: StateDir, *, retry: bool = False
    ) -> None:
        self._source = source
        self._state = state
        self._retry = retry
        self.verdict = PinVerdict(source, state, retry=retry)

    async def login(self, worker: Worker) -> None:
        """Log the worker's process in, if the token wants that.

        Raises:
            PinUnavailableError: As `check`.
            PinRejectedError: The token rejects the PIN, now or before.
            HsmKmsError: The token failed otherwise.
        """
        source = self._source
        if source is None:
            return
        if not self._state.path.is_dir():
            await self._see_through(worker, source)  # nowhere to lock
            return
        while True:
            with self._state.pin_lock() as acquired:
                if acquired:
                    await self._see_through(worker, source)
                    return
            await asyncio.sleep(_LOCK_POLL_SECONDS)

    async def _see_through(self, worker: Worker, source: PinSource) -> None:
        """Log in; when cancelled, let a C_Login under way end and note its verdict.

        SoftHSM rewrites the token's file in C_Login: a worker killed in it can leave
        that file empty, and the token lost.
        """
        task = asyncio.ensure_future(self._login(worker, source))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait([task], timeout=_LOGIN_END_SECONDS)
            if not done:  # killed before the PIN lock is let go
                worker.retire(End.START, "interrupted inside C_Login")
                await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # seen
            raise

    async def _login(self, worker: Worker, source: PinSource) -> None:
        if source.typed:
            await _exchange(worker, source, None, refuse_low=False)
            return
        identity = identify(source.path)
        if self._retry:
            self._state.forget_pin(identity)
        before = self.verdict.may_try(identity)
        if before.verdict == "proven":
            await self._try(worker, source, before)
            return
        self._state.write_pin(
            PinRecord(identity=identity, tries=before.tries + 1)
        )  # before the try: a crash inside it must count
        try:
            await self._try(worker, source, before)
        except (PinRejectedError, WorkerLostError):
            raise  # judged, or died inside C_Login: the try is used up
        except HsmKmsError as error:
            if not may_mean_wrong_pin(error):
                self.verdict.remember(before)  # no try was used up
            raise
        self.verdict.remember(PinRecord(identity=identity, verdict="proven"))

    async def _try(self, worker: Worker, source: PinSource, record: PinRecord) -> None:
        low = record.verdict != "proven" and not self._retry
        try:
            await _exchange(worker, source, record.identity, refuse_low=low)
        except PinRejectedError as error:
            self.verdict.remember(
                PinRecord(
                    identity=record.identity,
                    verdict="rejected",
                    tries=record.tries,
                    function=error.function,
                    rv=error.rv,
                )
            )
            raise


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
    if isinstance(reply, Failure):
        raise error_from(reply)
