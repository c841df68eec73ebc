"""Why a worker ends."""

from __future__ import annotations

from enum import StrEnum


class End(StrEnum):
    """Why a worker ended."""

    ASKED = "asked"  # the server stops, reloads, or needs it no more
    LOST = "lost"  # it crashed, or was killed from outside
    START = "start"  # it could not start, or not in time
    HANG = "hang"  # one call ran longer than hang_timeout
    CANARY = "canary"  # its canary failed, or it misses a key
    RECYCLED = "recycled"  # a fresh worker sees more keys
    LOGIN = "login"  # it was logged out
