"""Lines of docs/troubleshooting.md, for the tests that produce them."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def is_explained(beginning: str, names: dict[str, str] | None = None) -> bool:
    """Return True if a row of the page is about a line that begins so.

    Args:
        beginning: What a command prints, at least its beginning.
        names: What the page has for a name of the test.
    """
    for ours, on_page in (names or {}).items():
        beginning = beginning.replace(ours, on_page)
    return f"| `{beginning}" in PAGE.read_text()
