"""Workers and pool on a real token, without the server around them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from hsm_kms.ipc.messages import Decrypted, Encrypted, FindKeys
from hsm_kms.ipc.values import KeyRef
from hsm_kms.keys.listing import list_keys
from hsm_kms.token.alarm import Alarm
from hsm_kms.token.counts import Counts
from hsm_kms.token.pool import Pool
from hsm_kms.token.settings import WorkerSettings
from hsm_kms.token.workers import Workers
from tests.harness.one_worker import (
    Named,
    canary,
    configure,
    gate,
    unwrapping,
    wrapping,
)
from tests.harness.token_keys import LABEL
from tests.harness.wait import patient, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hsm_kms.errors import HsmKmsError
    from hsm_kms.token.process import Worker
    from tests.harness.softhsm import SoftHsm


class FaultLog(Alarm):
    """Keep every fault that raised the alarm.

    Attributes:
        faults: The errors, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[Exception] = []

    def fault(self, error: HsmKmsError) -> None:
        self.faults.append(error)
        super().fault(error)


class Served:
    """Workers that stock a pool, on a token with one KEK.

    Args:
        hsm: The token.
        pin_file: Its PIN.
        directory: For the state directory.
        answer_timeout: How long a request waits for an answer; `call_timeout` if None.
        settings: Changes to `WorkerSettings`.
    """

    def __init__(
        self,
        hsm: SoftHsm,
        pin_file: Path,
        directory: Path,
        *,
        answer_timeout: float | None = None,
        **settings: Any,
    ) -> None:
        given: dict[str, Any] = {
            "configure": configure(),
            "env": hsm.env,
            "workers": 2,
            "sessions": 4,
            "call_timeout": patient(30),
            "hang_timeout": patient(60),
            "start_timeout": patient(60),
        }
        self.settings = WorkerSettings(**(given | settings))
        self._answer_timeout = answer_timeout or self.settings.call_timeout
        self._gate = gate(pin_file, directory)
        self.key = Named(KeyRef(LABEL, b""), "")
        self.alarm = FaultLog()

    async def __aenter__(self) -> Self:
        self.counts = Counts()
        self.pool = Pool(
            session_wait=self._answer_timeout,
            call_timeout=self._answer_timeout,
            alarm=self.alarm,
            counts=self.counts,
        )
        self.workers = Workers(
            self.settings,
            pool=self.pool,
            login=self._gate,
            qualify=self.qualify,
            alarm=self.alarm,
            counts=self.counts,
        )
        self.workers.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pool.close()
        await self.workers.close()

    async def qualify(self, worker: Worker) -> None:
        """Find the key and leave a canary, as the server does."""
        # On the control session: a fresh worker has no other.
        keys = await list_keys(
            partial(worker.ask, seconds=patient()), FindKeys(label=LABEL)
        )
        assert keys[0].fingerprint is not None
        self.key = Named(keys[0].ref, keys[0].fingerprint)
        await worker.ask(canary(self.key), patient())

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until it is so."""
        await until(condition)

    async def stocked(self) -> Self:
        """Wait until all workers serve."""
        wanted = self.settings.workers
        await self.until(lambda: len(self.workers.ready) >= wanted)
        return self

    async def wrap(self, plaintext: bytes) -> Encrypted:
        """Wrap on some session."""
        reply = await self.pool.call(wrapping(self.key, plaintext), deadline=None)
        assert isinstance(reply, Encrypted)
        return reply

    async def unwrap(self, sealed: Encrypted, seconds: float | None = None) -> bytes:
        """Unwrap on some session, within so many seconds if they are given."""
        now = asyncio.get_running_loop().time()
        deadline = None if seconds is None else now + seconds
        reply = await self.pool.call(unwrapping(self.key, sealed), deadline=deadline)
        assert isinstance(reply, Decrypted)
        return reply.plaintext
