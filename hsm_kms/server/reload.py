"""Bring the configuration file into force, without a restart.

1. The file is read again on SIGHUP, when it changed (also behind a symlink, as
   Kubernetes mounts it), and now and then while it is not in force.
2. A faulty file, or one that changes what needs a restart, changes nothing at all.
3. While the file and the configuration in force differ, `Reload.rejected` says since
   when and why.
4. The file is watched while a take-over is under way: a newer file ends the trial of
   the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from hsm_kms import clock, log
from hsm_kms.audit.events import Config as ConfigEvent
from hsm_kms.audit.events import Wrapping
from hsm_kms.audit.port import UNAUDITED
from hsm_kms.errors import ConfigError
from hsm_kms.log import get_logger
from hsm_kms.tasks import cancel_and_wait

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from hsm_kms.audit.port import AdjustableAudit
    from hsm_kms.config.schema import Config
    from hsm_kms.config.schema import Wrapping as WrappingMode
    from hsm_kms.server.config_file import ConfigFile
    from hsm_kms.server.systemd import Systemd
    from hsm_kms.server.takeover import InForce

WATCH_SECONDS: Final = 2.0
FIRST_RETRY_SECONDS: Final = 5.0
LONGEST_RETRY_SECONDS: Final = 300.0  # a trial starts and logs in as many workers again

_TRYING: Final = "the configuration is being tried"

_log = get_logger(__name__)


class Change(IntEnum):
    """Name the effect of a changed setting; of several changes, the largest counts."""

    NOTHING = 0
    ADJUST = 1  # the engine goes on with the new value
    REPLACE = 2  # another engine takes over
    RESTART = 3  # refused: the setting is fixed while the server runs


# By the setting's dotted path; each row of the schema has one (a test walks it).
CHANGES: Final[Mapping[str, Change]] = {
    "version": Change.RESTART,
    "state_dir": Change.RESTART,
    "scope": Change.REPLACE,
    "listen": Change.RESTART,
    "apis.v2.enabled": Change.RESTART,
    "apis.v2.wrapping": Change.ADJUST,
    "apis.v2.version": Change.RESTART,
    "apis.v1.enabled": Change.RESTART,
    "apis.v1.wrapping": Change.ADJUST,
    "token.module": Change.RESTART,
    "token.uri": Change.REPLACE,
    "token.token_label": Change.REPLACE,
    "token.token_serial": Change.REPLACE,
    "token.slot": Change.REPLACE,
    "token.pin_file": Change.REPLACE,
    "token.shared": Change.REPLACE,
    "token.workers": Change.REPLACE,
    "token.sessions_per_worker": Change.REPLACE,
    "token.session_wait": Change.REPLACE,
    "token.call_timeout": Change.REPLACE,
    "token.hang_timeout": Change.REPLACE,
    "token.start_timeout": Change.REPLACE,
    "token.env": Change.REPLACE,
    "token.init_args": Change.REPLACE,
    "token.login": Change.REPLACE,
    "token.read_write": Change.REPLACE,
    "keys": Change.REPLACE,
    "local_keys": Change.ADJUST,
    "health.interval": Change.REPLACE,
    "health.canary": Change.REPLACE,
    "health.key": Change.REPLACE,
    "health.grace": Change.ADJUST,
    "health.stop_writes_after": Change.ADJUST,
    "http": Change.RESTART,
    "log": Change.ADJUST,
    "audit": Change.ADJUST,
}


def plan(old: Config, new: Config) -> tuple[Change, list[str]]:
    """Return the effect of the changed settings, and the settings that have it.

    Args:
        old: The configuration in force.
        new: The configuration that was read.
    """
    changed = changed_settings(old, new)
    effect = max((CHANGES[name] for name in changed), default=Change.NOTHING)
    return effect, [name for name in changed if CHANGES[name] is effect]


def changed_settings(old: Config, new: Config) -> list[str]:
    """Return the rows of `CHANGES` of which the settings differ."""
    readers = ((name, attrgetter(name)) for name in CHANGES)
    return [name for name, read in readers if read(old) != read(new)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Tell why the configuration file is not in force.

    Args:
        since: When the file was first read and not applied, in seconds since the Unix
            epoch.
        reason: Cause and cure, with names and paths, for the admin socket.
    """

    since: float
    reason: str


class Reload:
    """Bring the configuration file into force again and again.

    Args:
        file: The file.
        in_force: The engine in force.
        systemd: Told when a reload begins and ends.
        audit: Records what is applied and rejected, and follows the configuration.
        first_retry: Seconds until a rejected file is tried again; each further pause
            is twice as long, up to `LONGEST_RETRY_SECONDS`.

    Attributes:
        rejected: Why file and configuration in force differ; None if they do not.
        outcomes: How often a changed file was "applied" or "rejected".
    """

    def __init__(
        self,
        file: ConfigFile,
        in_force: InForce,
        systemd: Systemd,
        audit: AdjustableAudit = UNAUDITED,
        first_retry: float = FIRST_RETRY_SECONDS,
    ) -> None:
        self._file = file
        self._in_force = in_force
        self._systemd = systemd
        self._audit = audit
        self._first_retry = self._pause = first_retry
        self._logged: tuple[str, str] | None = None
        self.rejected: Rejected | None = None
        self.outcomes: Counter[str] = Counter()

    async def run(self, again: asyncio.Event) -> None:
        """Read the file at once, on `again`, and when it changed, until cancelled.

        Args:
            again: Set to have the file read again.
        """
        attempt = asyncio.create_task(self._attempt())
        try:
            while True:
                news = await self._news(again, attempt)
                again.clear()
                await cancel_and_wait(attempt)
                longer = min(2 * self._pause, LONGEST_RETRY_SECONDS)
                self._pause = self._first_retry if news else longer
                if news:
                    self._systemd.reloading()
                    if self.rejected is not None:
                        self._differs(_TRYING)
                attempt = asyncio.create_task(self._attempt())
        finally:
            await cancel_and_wait(attempt)

    async def _news(self, again: asyncio.Event, attempt: asyncio.Task[None]) -> bool:
        """Wait for a reason to read the file; return False if time alone is the reason.

        Time is a reason while the file is not in force and no attempt is under way.
        """
        loop = asyncio.get_running_loop()
        idle_since: float | None = None
        while not again.is_set() and not self._file.changed():
            if attempt.done() and self.rejected is not None:
                idle_since = idle_since or loop.time()
                if loop.time() - idle_since >= self._pause:
                    return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(WATCH_SECONDS, self._pause)):
                    await again.wait()
        return True

    async def _attempt(self) -> None:
        before = self._in_force.config
        try:
            await self.once()
        except Exception as error:  # noqa: BLE001 - a bug must not end reloads
            _log.error("bug during a reload", exc_info=error)
            self._differs(f"a bug in hsm-kms: {type(error).__name__}")
        finally:  # a take-over that was decided has happened, also if this is cancelled
            self._follow(before, self._in_force.config)
            self._systemd.ready()

    def _follow(self, before: Config, now: Config) -> None:
        """Record which configuration came into force; log and record as it says."""
        if now is before:
            return
        if now.log != before.log:
            log.configure(now.log.level, now.log.format)
        if not before.audit.enabled:
            self._audit.adjust(now.audit)  # so that what follows is recorded at all
        changed = tuple(changed_settings(before, now))
        self._audit.record(ConfigEvent(result="applied", changed=changed, reason=None))
        self._record_mode("v2", before.apis.v2.wrapping, now.apis.v2.wrapping)
        self._record_mode("v1", before.apis.v1.wrapping, now.apis.v1.wrapping)
        # What was recorded until here still goes where records went before.
        self._audit.adjust(now.audit)

    def _record_mode(
        self, api: Literal["v2", "v1"], before: WrappingMode, now: WrappingMode
    ) -> None:
        if now != before:
            self._audit.record(Wrapping(api=api, wrapping=now, before=before))

    async def once(self) -> bool:
        """Read the file and bring it into force; return True if that changed anything.

        `rejected` says afterwards if the file is in force.
        """
        try:
            config = self._file.load()
        except ConfigError as error:
            why = "; ".join(error.faults)
            self._reject("configuration rejected", why, (), faults=error.faults)
            return False
        effect, names = plan(self._in_force.config, config)
        match effect:
            case Change.NOTHING:
                self._same_again()
                return False
            case Change.ADJUST:
                self._in_force.adjust(config)
            case Change.REPLACE:
                if not await self._try(config):
                    return False
            case Change.RESTART:
                event = "configuration rejected: a restart is needed"
                why = f"a restart is needed to change {', '.join(names)}"
                self._reject(event, why, names, changed=names)
                return False
        self.outcomes["applied"] += 1
        _log.info("configuration applied", key_id=self._in_force.look().key_id)
        self.rejected, self._logged = None, None
        return True

    async def _try(self, config: Config) -> bool:
        """Let an engine with this configuration take over; return True if it did."""
        if self.rejected is None:
            self._differs(_TRYING)
        trouble = await self._in_force.take_over(config)
        if trouble is None:
            return True
        event = "configuration rejected: the token would become unavailable"
        changed = changed_settings(self._in_force.config, config)
        self._reject(event, trouble.sentence, changed, error=trouble.sentence)
        return False

    def _same_again(self) -> None:
        if self.rejected is not None:
            _log.info("the file equals the configuration in force again")
        self.rejected, self._logged = None, None

    def _reject(
        self, event: str, reason: str, settings: Sequence[str], **fields: object
    ) -> None:
        """Note a rejection; log it, but only once until its reason changes."""
        if (event, reason) != self._logged:
            self.outcomes["rejected"] += 1
            _log.error(event, **fields)
            self._audit.record(
                ConfigEvent(result="rejected", changed=tuple(settings), reason=reason)
            )
        self._logged = event, reason
        self._differs(reason)

    def _differs(self, reason: str) -> None:
        since = clock.now() if self.rejected is None else self.rejected.since
        self.rejected = Rejected(since=since, reason=reason)
