"""Lines of docs/troubleshooting.md and docs/operations.md."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "troubleshooting.md"


def shown(heading: str, names: dict[str, str] | None = None) -> list[str]:
    """Return the lines that the page shows in its first block below a heading.

    Args:
        heading: The heading.
        names: What stands in a test for a name on the page.
    """
    section = PAGE.read_text().split(f"\n### {heading}\n", 1)[1]
    block = section.split("```text\n", 1)[1].split("```", 1)[0]
    for on_page, ours in (names or {}).items():
        block = block.replace(on_page, ours)
    return block.splitlines()


def logged(what: str) -> list[str]:
    """Return what docs/operations.md says that kube-apiserver logs.

    Args:
        what: The first cell of a row of one of its tables.
    """
    (row,) = (
        line
        for line in (DOCS / "operations.md").read_text().splitlines()
        if line.startswith(f"| {what} |")
    )
    return re.findall("`([^`]+)`", row.rstrip(" |").rpartition("|")[2])
