"""Turn the state of the audit stream into metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.http import families

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from hsm_kms.audit.report import AuditReport


def audit_metrics(audit: AuditReport) -> Iterable[Metric]:
    """Yield the metrics of the audit stream; nothing if it is off.

    Args:
        audit: How the stream is.
    """
    if not audit.enabled:
        return
    yield families.counts(
        "hsm_kms_audit_records",
        "Audit records, written or lost.",
        "result",
        {"written": audit.written, "lost": audit.lost},
    )
    yield families.number(
        "hsm_kms_audit_records_waiting",
        "Audit records that are not written yet.",
        audit.waiting,
    )
    yield families.number(
        "hsm_kms_audit_failing",
        "1 while audit records are being lost, or one has waited for 2 s.",
        bool(audit.error),
    )
