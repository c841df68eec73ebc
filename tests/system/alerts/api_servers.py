"""The metrics of two API servers, as a kube-apiserver once showed them.

One uses the key that the nodes announce, the other one an older key. Their counters
grow with each scrape.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path

from tests.harness.http_server import Handler, HttpServer

PAGE = (Path(__file__).parent / "apiserver.txt").read_text()
# Only a plugin other than hsm-kms causes it, so the recorded page does not have it.
INVALID = (
    "apiserver_envelope_encryption_invalid_key_id_from_status_total"
    '{error="empty",provider_name="hsm"} 1\n'
)
_COUNTER = re.compile(
    r"^(\w+_(?:total|bucket|count|sum)\{[^}]*\}) (\S+)$", re.MULTILINE
)
_KEY = re.compile(r'key_id_hash="sha256:\w+"')


class _Handler(Handler):
    """Answer a scrape."""

    server: ApiServer

    def respond(self) -> None:
        """Send the page."""
        self.answer(self.server.page().encode(), "text/plain; version=0.0.4")


class ApiServer(HttpServer):
    """Serve the metrics of one API server.

    Args:
        key_id_hash: Hash of the key_id that it uses; that of the page if None.
    """

    def __init__(self, key_id_hash: str | None = None) -> None:
        super().__init__(_Handler)
        self._text = PAGE + INVALID
        if key_id_hash is not None:
            self._text = _KEY.sub(f'key_id_hash="{key_id_hash}"', self._text)
        self._scrapes = 0

    def page(self) -> str:
        """Return the page, with counters that are larger each time."""
        self._scrapes += 1
        count = self._scrapes
        return _COUNTER.sub(lambda one: f"{one[1]} {float(one[2]) * count}", self._text)


@contextmanager
def api_servers(key_id_hash: str):
    """Serve the metrics of two API servers; yield the port of each.

    Args:
        key_id_hash: Hash of the key_id that the nodes announce.
    """
    with ApiServer(key_id_hash) as one, ApiServer() as other:
        yield {"api-1": one.server_port, "api-2": other.server_port}
