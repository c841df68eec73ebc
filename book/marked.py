"""Replace the generated parts of a page, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[1]

# A part lies between two comments, of which the first says what it is.
_PART: Final = re.compile(
    r"^(?P<begin><!-- `make docs-reference` writes (?P<what>[^\n]*?) -->\n)"
    r"(?P<old>.*?)"
    r"^(?P<end><!-- end -->)$",
    re.MULTILINE | re.DOTALL,
)


def regenerate(page: str, write: Callable[[str, str], str]) -> str:
    """Return the text of a page with its generated parts as they should be.

    Args:
        page: The text.
        write: Takes what a part is, and its old text; returns the new text.

    Raises:
        ValueError: The page has no generated part.
    """
    text, count = _PART.subn(
        lambda part: (
            part["begin"]
            + write(part["what"], part["old"]).strip("\n")
            + "\n"
            + part["end"]
        ),
        page,
    )
    if not count:
        raise ValueError("the page has no part that is generated")
    return text
