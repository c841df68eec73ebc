"""Check whether audit records can be written, without writing one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hsm_kms.audit.target import failure, open_file
from hsm_kms.state_dir import files

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.cli.report import Report
    from hsm_kms.config import schema


def check_audit(report: Report, audit: schema.Audit) -> None:
    """Check the audit file, or that there can be one.

    Args:
        report: Takes the finding, if the audit is on.
        audit: The section `audit`.
    """
    if audit.stdout:
        report.ok("audit", "audit records go to stdout")
    if audit.file is None:
        return
    try:
        _require_usable(audit.file)
    except OSError as error:
        report.fail("audit", "audit", failure(audit.file, error))
    else:
        report.ok("audit", f"audit file {audit.file}")


def _require_usable(path: Path) -> None:
    try:
        os.close(open_file(path, create=False))
    except FileNotFoundError:
        files.require_writable(path.parent)  # serve would create the file
    else:
        files.require_space(path.parent)
