"""Turn what is wrong with the file into messages with path and line.

No message quotes the file, neither a value nor an unknown key: either may be a
misplaced PIN, and messages end up in logs. The path of known keys and the line number
show where the fault is.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from hsm_kms.config.schema import sections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from hsm_kms.config.from_uri import Expansion
    from hsm_kms.config.strict_yaml import Document

_SECTIONS = sections()
_KNOWN = {name for section in _SECTIONS.values() for name in section.model_fields}
_MESSAGES = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "missing": "is required",
    "model_type": "must be a mapping",
    "string_unicode": "must be text",
    "string_type": "must be text; quote numbers, yes and no",
}


def at(document: Document, place: tuple[str, ...], message: str) -> str:
    """Return a fault with the path and the line of its place.

    Args:
        document: The parsed file.
        place: Path of the key; the path is cut at the first unknown key.
        message: What is wrong, quoting nothing of the file.
    """
    line = document.lines.get(place)
    where = f" (line {line})" if line else ""
    return f"{_dotted(place)}: {message}{where}"


def key_faults(document: Document) -> Iterator[str]:
    """Yield a fault for each duplicate key, and for each key that is not text."""
    for place, first, second in document.twice:
        what = "duplicate key" if place[-1] in _KNOWN else "duplicate unknown key"
        yield f"{_dotted(place)}: {what} on lines {first} and {second}"
    for line in document.not_text:
        yield f"a key is not text (line {line})"


def value_faults(
    error: ValidationError, document: Document, whole: Expansion
) -> Iterator[str]:
    """Yield a fault for each entry of the schema's error."""
    for entry in error.errors():
        # Without the number of an item: the line is the one of its list.
        place = tuple(part for part in entry["loc"] if isinstance(part, str))
        if whole.broken and place == ("token", "module") and entry["type"] == "missing":
            continue  # the URI, which cannot be parsed, may give the module
        yield at(document, place, _message(entry, place))


def _message(entry: ErrorDetails, place: tuple[str, ...]) -> str:
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(place)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be {context['expected']}".replace("'", "")
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']}"
    return _MESSAGES.get(kind, "is not valid")


def _unknown_key(place: tuple[str, ...]) -> str:
    name = place[-1]
    if "pin" in name.lower().split("_"):
        return "unknown key; put the PIN into the file that pin_file names"
    path = ".".join(place[:-1])
    near = difflib.get_close_matches(name, _SECTIONS[path].model_fields, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    homes = [path for path, kind in _SECTIONS.items() if name in kind.model_fields]
    if homes:
        return f"unknown key; {name} belongs under {homes[0] or 'the top level'}"
    return "unknown key"


def _dotted(place: tuple[str, ...]) -> str:
    """Return the path up to the first unknown key, which is not quoted."""
    known = []
    for part in place:
        if part not in _KNOWN:
            break
        known.append(part)
    return ".".join(known) or "top level"
