"""Make the pages that are served over HTTP: probes, metrics and /status."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.http.exchange import Page, Pages
from hsm_kms.http.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hsm_kms.health.state import HealthState


METRICS_SECONDS: Final = 1.0  # how old the metrics may be


def public_pages(health: Callable[[], HealthState], metrics: Metrics) -> Pages:
    """Return /livez, /readyz and /metrics, which everybody on the node may read.

    Args:
        health: Reads the present state of health; called on the event loop.
        metrics: The registry.
    """

    def livez() -> Page:
        return Page(body=b"ok\n")

    def readyz() -> Page:
        now = health()
        status = HTTPStatus.OK if now.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Page(status=status, body=now.healthz.encode() + b"\n")

    def metrics_page() -> Page:
        return Page(body=metrics.render(), content_type=CONTENT_TYPE)

    return {"/livez": livez, "/readyz": readyz, "/metrics": metrics_page}


def sparing(pages: Pages) -> Pages:
    """Return the same pages, with /metrics made at most once a second for all clients.

    Args:
        pages: The pages of `public_pages`, to be served to clients that nobody knows.
    """
    return {**pages, "/metrics": _Kept(pages["/metrics"])}


def admin_pages(public: Pages, status: Callable[[], Mapping[str, Any]]) -> Pages:
    """Return the public pages and /status, for `hsm-kms status` and the operator.

    The public pages are there too, so that a TCP port which another process has taken
    hides neither probes nor metrics.

    Args:
        public: The pages of `public_pages`.
        status: Makes the content of /status; called on the event loop.
    """

    def status_page() -> Page:
        body = json.dumps(status(), indent=2).encode() + b"\n"
        return Page(body=body, content_type="application/json")

    return {**public, "/status": status_page}


class _Kept:
    """Make a page that takes long, and answer with the same page for a while.

    Args:
        make: Makes the page.
    """

    def __init__(self, make: Callable[[], Page]) -> None:
        self._make = make
        self._page: Page | None = None
        self._made = 0.0

    def __call__(self) -> Page:
        """Return the page."""
        now = time.monotonic()
        if self._page is None or now - self._made >= METRICS_SECONDS:
            self._page, self._made = self._make(), now
        return self._page
