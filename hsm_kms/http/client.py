"""Read /status from the admin socket of a running server."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

SECONDS: Final = 3.0


def read_status(path: Path) -> dict[str, Any] | None:
    """Return the content of /status, or None if no server answers.

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


class UnixConnection(http.client.HTTPConnection):
    """Connect to an HTTP server on a unix socket.

    Args:
        path: The socket.
        seconds: Longest wait in seconds for each read or write.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        """Connect; http.client calls this with the first request."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
