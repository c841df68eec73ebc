"""Take a changed configuration over, without a restart.

1. The file is read again on SIGHUP, and when it changed (also behind a symlink, as
   Kubernetes mounts it).
2. A faulty file, or one that changes what needs a restart, changes nothing at all.
3. The new engine takes over when it is well; or at once, if the old one is not.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from hsm_kms.config import load as configuration
from hsm_kms.errors import ConfigError
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hsm_kms.config.schema import Config
    from hsm_kms.server.takeover import InForce

WATCH_SECONDS: Final = 2.0

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
    "health.grace": Change.ADJUST,
    "health.stop_writes_after": Change.ADJUST,
    "http": Change.RESTART,
    "log": Change.ADJUST,
}


def plan(old: Config, new: Config) -> tuple[Change, list[str]]:
    """Return the effect of the changed settings, and the settings that have it.

    Args:
        old: The configuration in force.
        new: The configuration that was read.
    """
    changed = [name for name in CHANGES if _read(old, name) != _read(new, name)]
    effect = max((CHANGES[name] for name in changed), default=Change.NOTHING)
    return effect, [name for name in changed if CHANGES[name] is effect]


def _read(config: Config, name: str) -> object:
    return attrgetter(name)(config)


class ConfigFile:
    """Watch the configuration file for changes since it was last read.

    Args:
        path: The configuration file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._identity()

    def changed(self) -> bool:
        """Return True if the file was replaced or changed since the last call."""
        now = self._identity()
        if now is None or now == self._seen:
            return False
        self._seen = now
        return True

    def read(self, old: Config) -> Config | None:
        """Return the new configuration, or None if it is rejected or unchanged.

        Args:
            old: The configuration in force.
        """
        try:
            new = configuration.load(self._path)
        except ConfigError as error:
            _log.error("configuration rejected", faults=error.faults)
            return None
        effect, fixed = plan(old, new)
        if effect is Change.RESTART:
            _log.error(
                "configuration rejected: a restart is needed",
                changed=fixed,
            )
            return None
        return None if effect is Change.NOTHING else new

    def _identity(self) -> tuple[int, int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


class Reload:
    """Apply the configuration file again and again.

    Args:
        file: The file.
        in_force: The engine in force.
    """

    def __init__(self, file: ConfigFile, in_force: InForce) -> None:
        self._file = file
        self._in_force = in_force

    async def run(self, again: asyncio.Event) -> None:
        """Read the configuration on `again` and when it changed, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await again.wait()
            if again.is_set() or self._file.changed():
                again.clear()
                try:
                    new = self._file.read(self._in_force.engine.config)
                    if new is not None:
                        await self.apply(new)
                except Exception as error:  # noqa: BLE001 - a bug must not end reloads
                    _log.error("bug during a reload", exc_info=error)

    async def apply(self, config: Config) -> None:
        """Go on with another configuration."""
        effect, _ = plan(self._in_force.engine.config, config)
        if effect is Change.ADJUST:
            self._in_force.adjust(config)
        else:
            await self._in_force.take_over(config)
