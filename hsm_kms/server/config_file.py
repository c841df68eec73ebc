"""Read the configuration file, and notice that it has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.config import load as configuration

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.config.schema import Config


class ConfigFile:
    """Read the configuration file, and notice when it changed after that.

    Args:
        path: The configuration file.

    Attributes:
        path: The configuration file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None

    def load(self) -> Config:
        """Read the file.

        Raises:
            ConfigError: The file cannot be read or is invalid; all faults at once.
        """
        self._seen = self._identity()  # before reading: a change meanwhile is noticed
        return configuration.load(self.path)

    def changed(self) -> bool:
        """Return True if this is another file, or another content, than last time.

        A change is reported once. A missing file is not a change: whoever replaces it
        has not finished.
        """
        now = self._identity()
        if now is None or now == self._seen:
            return False
        self._seen = now
        return True

    def _identity(self) -> tuple[int, ...] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
