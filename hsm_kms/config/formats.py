"""Read and write durations, key_ids and paths of sockets in one way everywhere.

They are apart from `fields` so that other modules can use them without pydantic.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from pathlib import Path

KEY_ID: Final = re.compile(r"[a-z2-7]{26}(\.[a-z0-9]{1,16})?")
"""Form of a key_id: a fingerprint, then a dot and `keys.suffix` if that is set."""

MAX_SOCKET_PATH_BYTES: Final = 107
"""Longest path of a unix socket: `sun_path` has 108 bytes including a closing NUL."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_GO_UNITS: Final = _UNITS | {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6}
_GO_PART: Final = re.compile(
    r"([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ns|us|µs|μs|ms|s|m|h|d)"
)
_GO_DURATION: Final = re.compile(f"(?:{_GO_PART.pattern})+")


def grpc_target(socket: Path) -> str:
    """Return the name by which gRPC listens on a unix socket, or connects to it.

    gRPC reads the name as a URI, percent signs and all.

    Args:
        socket: Path of the socket.
    """
    return f"unix:{quote(os.fsencode(socket))}"


def parse_duration(value: object) -> float:
    """Return the seconds of a duration such as "500ms", "2s", "5m", "24h" or "7d".

    Raises:
        ValueError: `value` is anything else; a number without a unit is refused too.
    """
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a whole number with its unit: 500ms, 2s, 5m, 24h, 7d")
    return int(found[1]) * _UNITS[found[2]]


def parse_go_duration(text: str) -> float:
    """Return the seconds of a duration as Go writes it: "1m30s", "2.5s" or "0".

    Days, which Go has not, are taken as in the configuration file.

    Raises:
        ValueError: `text` is anything else; so is a negative duration.
    """
    if text == "0":
        return 0.0
    if not _GO_DURATION.fullmatch(text):
        raise ValueError("must be a duration such as 500ms, 2.5s, 1m30s, 24h or 7d")
    return sum(float(count) * _GO_UNITS[unit] for count, unit in _GO_PART.findall(text))


def format_duration(seconds: float) -> str:
    """Write seconds as a duration of the file, in the largest unit that is exact."""
    millis = round(seconds * 1000)
    for unit, size in reversed(_UNITS.items()):
        count, rest = divmod(millis, round(size * 1000))
        if rest == 0 and (count > 0 or unit == "s"):
            return f"{count}{unit}"
    return f"{millis}ms"
