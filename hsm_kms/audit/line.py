"""Write an event as one line of JSON."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms import clock
from hsm_kms.audit.events import VERSION

if TYPE_CHECKING:
    from hsm_kms.audit.events import Event

_ENCODER: Final = msgspec.json.Encoder()


def body_of(event: Event, source: str) -> bytes:
    """Return a line as far as its number is not needed.

    Args:
        event: The event, which happens now.
        source: See `events.Header`.
    """
    fields = _ENCODER.encode(event)
    return b'"time":"%b","source":"%b","pid":%d,%b\n' % (
        moment().encode(),
        source.encode(),
        os.getpid(),
        fields[1:],
    )


def numbered(body: bytes, seq: int) -> bytes:
    """Return the whole line.

    Args:
        body: From `body_of`.
        seq: Its number.
    """
    return b'{"v":%d,"seq":%d,%b' % (VERSION, seq, body)


def moment() -> str:
    """Return the present time as RFC 3339 does, in UTC, with microseconds."""
    now = datetime.fromtimestamp(clock.now(), UTC)
    return now.isoformat(timespec="microseconds").replace("+00:00", "Z")
