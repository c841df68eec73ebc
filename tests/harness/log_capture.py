"""Runs a block with our logging in force and keeps what it wrote."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from typing import TYPE_CHECKING, Any, Literal

import structlog

from hsm_kms import log

if TYPE_CHECKING:
    from collections.abc import Iterator


class Captured(io.StringIO):
    """A stream of JSON lines."""

    def events(self) -> list[dict[str, Any]]:
        """Return what was written so far, an object per line."""
        return [json.loads(line) for line in self.getvalue().splitlines()]


@contextlib.contextmanager
def captured(
    level: Literal["debug", "info", "warning", "error"] = "debug",
    form: Literal["json", "text"] = "json",
) -> Iterator[Captured]:
    """Configure logging for the block, and undo it afterwards."""
    names = (None, "asyncio", "grpc")
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = logging.root.handlers[:]
    configured = structlog.get_config()
    stream = Captured()
    log.configure(level, form, stream)
    try:
        yield stream
    finally:
        structlog.configure(**configured)
        logging.root.handlers[:] = handlers
        for name, number in levels.items():
            logging.getLogger(name).setLevel(number)
