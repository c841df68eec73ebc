"""What the wrapping of each API gives up against `token`, for one configuration."""

from __future__ import annotations

import textwrap
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from hsm_kms.config.formats import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hsm_kms.config.schema import ApiV1, ApiV2, Config, Wrapping

_COLUMNS: Final = (
    ("API", 3),
    ("WRAPPING", 8),
    ("READING THE SERVER'S MEMORY OPENS", 26),
    ("WORKS WITHOUT THE HSM", 22),
    ("THE HSM'S LOG SHOWS", 19),
    ("COSTS", 22),
)
_MEMORY: Final[dict[Wrapping, str]] = {
    "token": "the DEKs under way at that moment",
    "fallback": "every DEK wrapped without the HSM; and forges more",
    "software": "every DEK that a local KEK in it wrapped; and forges more",
}
_LOG: Final[dict[Wrapping, str]] = {
    "token": "every DEK",
    "fallback": "every DEK but those wrapped without it",
    "software": "every local KEK, no DEK",
}


def tradeoff(config: Config) -> Iterator[str]:
    """A table with a row for each API that is enabled, as lines of text."""
    yield "What each wrapping gives up against `token` (docs/threat-model.md):"
    yield from _lines([name for name, _ in _COLUMNS])
    wrappings = _wrappings(config)
    for api, wrapping in wrappings.items():
        yield from _lines(
            [
                api,
                wrapping,
                _MEMORY[wrapping],
                _without_hsm(config, wrapping),
                _LOG[wrapping],
                _cost(config, api, wrapping),
            ]
        )
    if "token" in wrappings.values() and len(set(wrappings.values())) > 1:
        yield "What the local KEKs of the one API forge, the other opens as well."


def _wrappings(config: Config) -> dict[str, Wrapping]:
    apis: dict[str, ApiV2 | ApiV1] = {"v2": config.apis.v2, "v1": config.apis.v1}
    return {name: api.wrapping for name, api in apis.items() if api.enabled}


def _without_hsm(config: Config, wrapping: Wrapping) -> str:
    if wrapping == "token":
        return "nothing that the token wraps"
    opened = "Decrypt by local KEKs in memory"
    if not config.local_keys.max_offline:
        return f"{opened}; no Encrypt"
    limit = format_duration(config.local_keys.max_offline)
    return f"Encrypt for {limit}, {opened}; nothing after a restart"


def _cost(config: Config, api: str, wrapping: Wrapping) -> str:
    if wrapping == "software":
        return "token calls per local KEK only; longer records"
    verified = api == "v2" and config.local_keys.verify_wraps
    calls = "2 token calls" if verified else "1 token call"
    return f"{calls} per Encrypt, 1 per Decrypt"


def _lines(cells: Sequence[str]) -> Iterator[str]:
    """One row, each cell broken into lines of its column's width."""
    widths = [width for _, width in _COLUMNS]
    broken = [
        textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)
    ]
    for line in zip_longest(*broken, fillvalue=""):
        padded = (part.ljust(width) for part, width in zip(line, widths, strict=True))
        yield "  " + "  ".join(padded).rstrip()
