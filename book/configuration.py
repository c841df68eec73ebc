"""Write the tables of docs/configuration.md from the model of the configuration.

The column "meaning" is prose: it is read from the page, and kept.
"""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from annotated_types import Ge, Le

from hsm_kms.config import fields
from hsm_kms.config.formats import MAX_SOCKET_PATH_BYTES, format_duration
from hsm_kms.config.schema import Section, sections
from hsm_kms.server.reload import CHANGES, Change

HEAD: Final = "| key | type | default | change | meaning |\n|---|---|---|---|---|\n"
TOP: Final = "the whole file"
EFFECTS: Final = {
    Change.ADJUST: "at once",
    Change.REPLACE: "new workers",
    Change.RESTART: "restart",
}
_NAMED: Final[list[tuple[Any, str]]] = [
    (fields.Duration, "duration"),
    (fields.DurationOrZero, "duration, also `0s`"),
    (fields.Days, "duration, at most `30d`"),
    (fields.DaysOrZero, "duration, at most `30d`, also `0s`"),
    (fields.AbsolutePath, "path"),
    (fields.SocketPath, f"path, at most {MAX_SOCKET_PATH_BYTES} bytes"),
    (fields.SocketMode, "octal text"),
    (fields.KeyIds, "list of key_ids, at most 64"),
    (fields.CkaIds, "list of hex text, at most 64"),
    (fields.Aliases, "mapping of key_ids to CKA_IDs in hex, at most 64"),
    (fields.Environment, "mapping of text"),
    (bool, "boolean"),
    (str, "text"),
]
_LARGEST: Final = 2**63 - 1


def tables(what: str, old: str) -> str:
    """Return the table of some sections, with the meanings that it had before.

    Args:
        what: "keys of", and the dotted paths of the sections, with commas; the file
            itself is "the whole file".
        old: The table as it was.
    """
    meanings = dict(_meanings(old))
    names = what.removeprefix("keys of ").split(", ")
    rows = [
        row
        for name in names
        for row in _rows("" if name == TOP else name.strip("`"), meanings)
    ]
    return HEAD + "\n".join(rows)


def _meanings(table: str) -> list[tuple[str, str]]:
    cells = [line.split(" | ") for line in table.splitlines() if line[:3] == "| `"]
    return [
        (key.strip("| `"), " | ".join(rest).removesuffix("|").strip())
        for key, _type, _default, _change, *rest in cells
    ]


def _rows(path: str, meanings: dict[str, str]) -> list[str]:
    section = sections()[path]
    hints = get_type_hints(section, include_extras=True)
    rows = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            continue
        key = f"{path}.{name}".lstrip(".")
        default = "required" if field.is_required() else _shown(field.default)
        kind = described(hints[name])
        if _optional(hints[name]) and field.default is not None:
            kind += ", or `null`"
        change = EFFECTS[CHANGES.get(key) or CHANGES[path]]
        meaning = meanings.get(key, "")
        rows.append(f"| `{key}` | {kind} | {default} | {change} | {meaning} |")
    return rows


def described(hint: Any) -> str:
    """Return the type of a setting in words.

    Args:
        hint: The annotation, with its metadata.

    Raises:
        LookupError: Nothing says how this type is called.
    """
    for alias, words in _NAMED:
        if hint == alias:
            return words
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if _optional(hint):
        [inner] = [each for each in get_args(hint) if each is not type(None)]
        return described(inner)
    if get_origin(hint) is Annotated:
        return _annotated(*get_args(hint))
    raise LookupError(f"no words for {hint}")


def _annotated(kind: type, *metadata: Any) -> str:
    for each in metadata:
        if words := getattr(each, "words", None):
            return str(words)
        if kind is int:
            return _bounds(each.metadata)
    raise LookupError(f"no words for {kind} with {metadata}")


def _bounds(limits: list[Any]) -> str:
    [least] = [int(each.ge) for each in limits if isinstance(each, Ge)]  # type: ignore[call-overload]
    [most] = [int(each.le) for each in limits if isinstance(each, Le)]  # type: ignore[call-overload]
    if most == _LARGEST:
        return "whole number"
    return f"`{most}`" if least == most else f"{least} to {most:,}"


def _optional(hint: Any) -> bool:
    return get_origin(hint) in {Union, UnionType} and type(None) in get_args(hint)


def _shown(default: Any) -> str:
    value: Any = default
    if isinstance(default, float):
        value = format_duration(default)
    elif isinstance(default, tuple):
        value = list(default)
    elif isinstance(default, Path):
        value = str(default)
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    if isinstance(value, str) and (text != value or ":" in value):
        text = f'"{value}"'
    return f"`{text}`"
