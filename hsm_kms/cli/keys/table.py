"""Format keys as a table for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.cli.columns import aligned
from hsm_kms.clock import now, spell

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_COLUMNS: Final = ("KEY_ID", "STATE", "ACTIVATION", "AGE", "CIPHER", "ORIGIN", "CKA_ID")
_ORIGIN: Final = {True: "generated", False: "imported", None: "-"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Hold what is shown of one key, or of a leftover.

    Args:
        shown: The entry of `-o json`.
        remarks: Lines below the row of the table.
    """

    shown: dict[str, Any]
    remarks: tuple[str, ...] = ()


def table(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the lines of the table; no line if there is nothing to show."""
    if not lines:
        return
    headings, *rows = aligned([_COLUMNS, *(_row(each.shown) for each in lines)])
    yield headings
    for row, line in zip(rows, lines, strict=True):
        yield row
        yield from (f"  {remark}" for remark in line.remarks)


def _row(shown: dict[str, Any]) -> tuple[str, ...]:
    age = now() - shown["activation"]
    return (
        shown["key_id"] or "-",
        shown["state"],
        shown["activation_time"] or "-",
        spell(age) if shown["activation_time"] and age >= 0 else "-",
        shown["cipher"] or "-",
        _ORIGIN[shown["generated_on_token"]],
        shown["cka_id"] or "(empty)",
    )
