"""Remember which key was proven on which worker, and judge which may be switched to.

A key may be switched to when, since its activation time came, it has been proven on
every worker that serves.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from hsm_kms.keys.trial import PASSED, Trial

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hsm_kms.ipc.values import Cipher, KeyRef
    from hsm_kms.keys.token_key import TokenKey
    from hsm_kms.keys.trial import Try
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.process import Worker


class Proofs:
    """Keep what canaries have shown, until a worker ends or a key is no longer held.

    All times are in the loop's time.

    Args:
        alarm: Raised when a key should be proven at once.
    """

    def __init__(self, alarm: Alarm) -> None:
        self._alarm = alarm
        self._proven: dict[tuple[Worker, tuple[KeyRef, str, Cipher]], float] = {}
        self._failures: dict[tuple[Worker, tuple[KeyRef, str, Cipher]], str] = {}
        self._inspected: dict[Worker, float] = {}
        self._due: dict[tuple[str, Cipher], float] = {}

    def passed(self, worker: Worker, key: TokenKey, began: float) -> None:
        """Note that a canary passed.

        Args:
            worker: The worker.
            key: The key.
            began: When the canary began: a key that comes due meanwhile has not been
                proven since.
        """
        self._proven[worker, key.found_by] = began
        self._failures.pop((worker, key.found_by), None)

    def failed(self, worker: Worker, key: TokenKey, failure: str) -> None:
        """Note why a canary failed."""
        self._proven.pop((worker, key.found_by), None)
        self._failures[worker, key.found_by] = failure

    def inspected(self, worker: Worker, at: float) -> None:
        """Note when the token last answered an inspection with `worker`."""
        self._inspected[worker] = at

    def has_proven(self, worker: Worker, key: TokenKey) -> bool:
        """Return True if the latest canary under `key` on `worker` passed."""
        return (worker, key.found_by) in self._proven

    def are_doubted(self, worker: Worker, key: TokenKey) -> bool:
        """Return True if something happened that an earlier canary says nothing of."""
        proven = self._proven[worker, key.found_by]
        asked = self._due.get(key.name, -math.inf)
        return proven < asked or proven <= self._alarm.fault_at

    @property
    def a_worker_lives(self) -> bool:
        """Return True if a worker that was inspected has not ended."""
        return any(not each.lost.is_set() for each in self._inspected)

    def forget(self, held: Iterable[TokenKey]) -> None:
        """Forget workers that are gone, and what was proven of keys no longer held.

        Args:
            held: The keys held.
        """
        names = {key.found_by for key in held}
        for each in [each for each in self._inspected if each.lost.is_set()]:
            del self._inspected[each]
        for tried in (self._proven, self._failures):
            for worker, name in list(tried):
                if name not in names or worker.lost.is_set():
                    del tried[worker, name]

    def trials(self) -> Try:
        """Return the test for a key to switch to, for one adoption of the keys.

        A due key passes the test once it has been proven on every worker that serves,
        after the first adoption that asked for it. A key that this adoption does not
        ask for starts again.
        """
        before, self._due = self._due, {}
        serving = [
            each
            for each in self._inspected
            if not each.retiring and not each.lost.is_set()
        ]

        def trial(key: TokenKey) -> Trial:
            since = before.get(key.name)
            if since is None:
                since = asyncio.get_running_loop().time()
                self._alarm.notify("the activation time of a key has come")
            self._due[key.name] = since
            lacking = [
                each
                for each in serving
                if self._proven.get((each, key.found_by), -math.inf) < since
            ]
            if not lacking:
                return PASSED
            failures = (self._failure(each, key, since) for each in lacking)
            return Trial(passed=False, failure=next(filter(None, failures), ""))

        return trial

    def _failure(self, worker: Worker, key: TokenKey, since: float) -> str:
        """Return why a key that is due is not proven on a worker; "" if untried."""
        if failure := self._failures.get((worker, key.found_by)):
            return failure
        inspected = self._inspected.get(worker, -math.inf) > since
        unseen = inspected and not self.has_proven(worker, key)
        return "a worker does not see the key" if unseen else ""
