"""Make the pages that are served over HTTP: probes, metrics and /status."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from hsm_kms.http.metrics import CONTENT_TYPE, Metrics
from hsm_kms.http.server import Page, Pages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hsm_kms.health.state import HealthState


def public_pages(health: Callable[[], HealthState], metrics: Metrics) -> Pages:
    """Return /livez, /readyz and /metrics.

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


def admin_pages(status: Callable[[], Mapping[str, Any]]) -> Pages:
    """Return /status, for `hsm-kms status` and for people on the node.

    Args:
        status: Makes the content of /status; called on the event loop.
    """

    def status_page() -> Page:
        body = json.dumps(status(), indent=2).encode() + b"\n"
        return Page(body=body, content_type="application/json")

    return {"/status": status_page}
