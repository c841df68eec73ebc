"""Ask a running server's admin socket."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.http.client import UnixConnection

if TYPE_CHECKING:
    from pathlib import Path

SECONDS: Final = 3.0


def read_status(path: Path) -> dict[str, Any] | None:
    """GET /status; None where nobody answers.

    Args:
        path: The admin socket.
    """
    connection = UnixConnection(path, SECONDS)
    try:
        connection.request("GET", "/status")
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else None
