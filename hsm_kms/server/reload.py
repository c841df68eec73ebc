"""Take a changed configuration over, without a restart.

1. The file is read again on SIGHUP, and when it changed (also behind a symlink, as
   Kubernetes mounts it).
2. A faulty file, or one that changes what needs a restart, changes nothing at all.
3. The new engine takes over when it is well; or at once, if the old one is not.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from hsm_kms.config import load as configuration
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.config.schema import Config
    from hsm_kms.server.engine import Engine

WATCH_SECONDS: Final = 2.0
POLL_SECONDS: Final = 0.05

_log = get_logger(__name__)


def needs_restart(old: Config, new: Config) -> list[str]:
    """Names of the settings that differ and cannot change while serving."""
    fixed = {
        "listen": (old.listen, new.listen),
        "http": (old.http, new.http),
        "state_dir": (old.state_dir, new.state_dir),
        "token.module": (old.token.module, new.token.module),
        "apis.v2.enabled": (old.apis.v2.enabled, new.apis.v2.enabled),
        "apis.v2.version": (old.apis.v2.version, new.apis.v2.version),
        "apis.v1.enabled": (old.apis.v1.enabled, new.apis.v1.enabled),
    }
    return [name for name, (before, after) in fixed.items() if before != after]


class ConfigFile:
    """The file, and what it was when it was read last.

    Args:
        path: The configuration file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._identity()

    def changed(self) -> bool:
        """Whether it is another file, or another content, than last time."""
        now = self._identity()
        if now is None or now == self._seen:
            return False
        self._seen = now
        return True

    def read(self, old: Config) -> Config | None:
        """The new configuration; None where nothing is to be done.

        Args:
            old: The one in force.
        """
        try:
            new = configuration.load(self._path)
        except ConfigError as error:
            _log.error("the configuration is not taken over", faults=error.faults)
            return None
        if fixed := needs_restart(old, new):
            _log.error(
                "the configuration is not taken over: a restart is needed",
                changed=fixed,
            )
            return None
        return None if new == old else new

    def _identity(self) -> tuple[int, int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


async def wait_until_well(engine: Engine, seconds: float) -> HsmKmsError | None:
    """Wait for an engine; why it did not become well, or None if it did.

    Args:
        engine: Started.
        seconds: Longest wait.
    """
    try:
        async with asyncio.timeout(seconds):
            while not engine.well:
                if engine.workers.last_error is not None:
                    return engine.workers.last_error
                if engine.keys.ring is not None and engine.keys.ring.fault is not None:
                    return engine.keys.ring.fault
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        return HsmKmsError(engine.health.detail)
    return None
