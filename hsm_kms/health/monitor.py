"""Decide when the token is inspected.

Every `interval`, when a key's activation time comes, and at once after an alarm, each
worker that serves is inspected. Between two inspections pass at least 0.2 s, however
many alarms come.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import HsmKmsError
from hsm_kms.health.fresh_worker import FreshWorkerChecks, RequestedLooks
from hsm_kms.log import get_logger
from hsm_kms.tasks import keep_running
from hsm_kms.token.ends import End

if TYPE_CHECKING:
    from hsm_kms.health.inspection import Inspection
    from hsm_kms.health.state import Health
    from hsm_kms.keys.node_keyring import NodeKeyring
    from hsm_kms.token.alarm import Alarm
    from hsm_kms.token.process import Worker
    from hsm_kms.token.workers import Workers

RETRY_SECONDS: Final = 2.0
_JITTER: Final = 0.2
AT_MOST_EVERY_SECONDS: Final = 0.2  # between two rounds, whatever is asked


_log = get_logger(__name__)


class Monitor:
    """Inspect the token again and again, in the background.

    Args:
        workers: The workers to inspect it with.
        inspection: Inspects it.
        health: Brought up to date after each inspection.
        node_keyring: Knows when the next key's activation time comes.
        alarm: Asks for an inspection at once.
        interval: Seconds between inspections while all is well.
    """

    def __init__(
        self,
        workers: Workers,
        inspection: Inspection,
        health: Health,
        node_keyring: NodeKeyring,
        alarm: Alarm,
        *,
        interval: float,
    ) -> None:
        self._workers = workers
        self._inspection = inspection
        self._health = health
        self._node_keyring = node_keyring
        self._alarm = alarm
        self._interval = interval
        self._began = node_keyring.clock()  # the latest round
        self._requested = RequestedLooks(self._look_once)
        self._fresh_checks = FreshWorkerChecks(workers, inspection, alarm, interval)

    @property
    def error(self) -> HsmKmsError | None:
        """Return why the latest worker could not start; None if no start failed."""
        return self._workers.last_error

    async def first_news(self) -> None:
        """Wait until the keys have been read, or a worker could not start."""
        await self._health.first_news()

    async def look_again(self, until: float) -> None:
        """Inspect the token because a request names a key that is not held.

        Args:
            until: Longest wait, in the loop's time.
        """
        if await self._requested.look(until):
            self._fresh_checks.soon()

    async def run(self) -> None:
        """Inspect every worker, again and again, until cancelled."""
        checks = asyncio.create_task(
            keep_running("fresh-worker checks", self._fresh_checks.run)
        )
        try:
            while True:
                self._health.evaluate()  # time alone may change it
                await self._pause()
                for worker in self._serving():
                    await self.look(worker)
        finally:
            self._requested.close()
            checks.cancel()
            await asyncio.gather(checks, return_exceptions=True)

    async def look(self, worker: Worker) -> None:
        """Inspect the token with one worker, and end the worker if it fails."""
        try:
            if await self._inspection.look(worker):
                self._workers.canary_passed()
        except HsmKmsError as error:
            self._workers.end(worker, End.CANARY, str(error))
        except Exception as error:  # noqa: BLE001 - a bug must not end the monitor
            _log.error("bug in the monitor", exc_info=error)
        self._fresh_checks.end_outdated()
        self._health.evaluate()

    async def _look_once(self) -> None:
        for worker in self._serving()[:1]:
            await self.look(worker)

    def _serving(self) -> list[Worker]:
        ready = self._workers.ready
        return [each for each in ready if not each.retiring and not each.lost.is_set()]

    async def _pause(self) -> None:
        """Wait for the next round; an alarm changes the state of health at once."""
        loop = asyncio.get_running_loop()
        soonest = loop.time() + AT_MOST_EVERY_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds_to_next()):
                await self._alarm.wait()
        self._health.evaluate()
        await asyncio.sleep(soonest - loop.time())
        # No await from here to the round: what happens from now on starts another.
        self._alarm.clear()
        self._began = self._node_keyring.clock()

    def _seconds_to_next(self) -> float:
        retry = min(RETRY_SECONDS, self._interval)
        seconds = self._interval if self._health.settled else retry
        seconds *= 1 + _JITTER * (secrets.SystemRandom().random() - 0.5)
        # A key whose time came during the round, after the keys were judged, is due
        # at once.
        coming = self._node_keyring.seconds_to_next(self._began)
        return seconds if coming is None else min(seconds, coming)
