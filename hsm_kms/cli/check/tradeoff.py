"""Compare the wrapping mode of each API with `token`: what it gives up."""

from __future__ import annotations

import textwrap
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from hsm_kms.config.formats import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hsm_kms.config.schema import ApiV1, ApiV2, Config, Wrapping

# Heading and width of each column where there is room; the first two keep theirs.
_COLUMNS: Final = (
    ("API", 3),
    ("WRAPPING", 8),
    ("A MEMORY DUMP REVEALS", 26),
    ("WORKS WITHOUT THE HSM", 22),
    ("THE HSM'S LOG SHOWS", 19),
    ("COSTS", 22),
)
_FIXED: Final = 2
_GAP: Final = 2
_LEAST: Final = 13  # a narrower column would break words
_MEMORY: Final[dict[Wrapping, str]] = {
    "token": "the DEKs in requests at that moment",
    "fallback": "every DEK wrapped by a local KEK in memory; new ones can be forged",
    "software": "every DEK wrapped by a local KEK in memory; new ones can be forged",
}
_LOG: Final[dict[Wrapping, str]] = {
    "token": "every DEK",
    "fallback": "every DEK that the HSM wrapped",
    "software": "every local KEK, no DEK",
}


def tradeoff(config: Config, width: int) -> Iterator[str]:
    """Yield the lines of a table with one row for each enabled API.

    Args:
        config: The configuration.
        width: Characters in a line; a terminal too narrow for columns gets a list.
    """
    title = (
        "What each wrapping mode gives up compared to `token` (docs/threat-model.md):"
    )
    yield from textwrap.wrap(title, width)
    wrappings = _wrappings(config)
    rows = [
        [
            api,
            wrapping,
            _MEMORY[wrapping],
            _without_hsm(config, wrapping),
            _LOG[wrapping],
            _cost(config, api, wrapping),
        ]
        for api, wrapping in wrappings.items()
    ]
    yield from _table(rows, width)
    if "token" in wrappings.values() and len(set(wrappings.values())) > 1:
        yield from textwrap.wrap(
            "A DEK forged with a local KEK of one API is accepted by the other API.",
            width,
        )


def _wrappings(config: Config) -> dict[str, Wrapping]:
    apis: dict[str, ApiV2 | ApiV1] = {"v2": config.apis.v2, "v1": config.apis.v1}
    return {name: api.wrapping for name, api in apis.items() if api.enabled}


def _without_hsm(config: Config, wrapping: Wrapping) -> str:
    if wrapping == "token":
        return "nothing that the token wrapped"
    decrypt = "Decrypt with local KEKs in memory"
    if not config.local_keys.max_offline:
        return f"{decrypt}; no Encrypt"
    limit = format_duration(config.local_keys.max_offline)
    return f"Encrypt for {limit}, {decrypt}; nothing after a restart"


def _cost(config: Config, api: str, wrapping: Wrapping) -> str:
    if wrapping == "software":
        return "token calls per local KEK only; longer records"
    verified = api == "v2" and config.local_keys.verify_wraps
    calls = "2 token calls" if verified else "1 token call"
    return f"{calls} per Encrypt, 1 per Decrypt"


def _table(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    widths = _widths(width)
    names = [name for name, _ in _COLUMNS]
    if min(widths[_FIXED:]) >= _LEAST:
        for row in (names, *rows):
            yield from _lines(row, widths)
        return
    for row in rows:
        for name, cell in zip(names, row, strict=True):
            yield from textwrap.wrap(
                f"{name.lower()}: {cell}",
                width,
                initial_indent="  ",
                subsequent_indent="    ",
            )


def _widths(width: int) -> list[int]:
    """Return the widths of the columns, narrowed evenly to the width of a line."""
    wanted = [each for _, each in _COLUMNS]
    excess = _GAP * len(wanted) + sum(wanted) - width
    if excess <= 0:
        return wanted
    narrowed = len(wanted) - _FIXED
    less = [(excess + number) // narrowed for number in range(narrowed)]
    return [
        *wanted[:_FIXED],
        *(each - by for each, by in zip(wanted[_FIXED:], reversed(less), strict=True)),
    ]


def _lines(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of one row, each cell wrapped to the width of its column."""
    broken = [
        textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)
    ]
    for line in zip_longest(*broken, fillvalue=""):
        padded = (part.ljust(width) for part, width in zip(line, widths, strict=True))
        yield " " * _GAP + (" " * _GAP).join(padded).rstrip()
