"""`token.uri`: what it says takes the place of the keys that could say it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hsm_kms.config import pkcs11_uri

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hsm_kms.config.pkcs11_uri import Pkcs11Uri

URI: Final = ("token", "uri")
_Place = tuple[str, str]
_SELECTORS: Final[dict[_Place, str]] = {
    ("token", "token_label"): "token",
    ("token", "token_serial"): "serial",
    ("token", "slot"): "slot_id",
}
_REST: Final[dict[_Place, str]] = {
    ("token", "module"): "module_path",
    ("token", "pin_file"): "pin_source",
    ("keys", "label"): "object",
    ("keys", "ids"): "id",
}


@dataclass(frozen=True, slots=True)
class Expansion:
    """The file's data with its `token.uri` written out.

    Args:
        data: As if each key had been given by itself.
        faults: What is wrong with the URI, and where to say so.
        broken: The URI cannot be read, so nothing is known of what it may give.
    """

    data: Any
    faults: list[tuple[_Place, str]] = field(default_factory=list)
    broken: bool = False


def expand(data: Mapping[str, Any]) -> Expansion:
    """Write the file's `token.uri` out.

    Args:
        data: The file's data, of any shape.
    """
    token, keys = data.get("token"), data.get("keys", {})
    uri = token.get("uri") if isinstance(token, dict) else None
    if not isinstance(token, dict) or not isinstance(uri, str):
        return Expansion(data)
    try:
        parsed = pkcs11_uri.parse(uri)
    except ValueError as error:
        return Expansion(data, faults=[(URI, str(error))], broken=True)
    whole = {**data, "token": dict(token)}
    if isinstance(keys, dict):
        whole["keys"] = dict(keys)
    expansion = Expansion(whole)
    if not parsed.names_a_token:
        sentence = "must name the token: token, serial, manufacturer, model or slot-id"
        expansion.faults.append((URI, sentence))
    for place, name, value in _values(parsed):
        _take(expansion, place, name, value)
    if isinstance(keys, dict) and parsed.id is not None and parsed.object is None:
        # The URI tells the key by its CKA_ID alone, so no default label filters.
        whole["keys"].setdefault("label", None)
    return expansion


def said_by(uri: str) -> tuple[_Place, ...]:
    """The keys whose value this URI gives.

    Args:
        uri: A URI that `expand` found no fault with.
    """
    return tuple(place for place, _, _ in _values(pkcs11_uri.parse(uri)))


def _values(parsed: Pkcs11Uri) -> Iterator[tuple[_Place, str, Any]]:
    for place, name in (_SELECTORS | _REST).items():
        value = getattr(parsed, name)
        if value is not None:
            yield (
                place,
                name.replace("_", "-"),
                [value.hex()] if isinstance(value, bytes) else value,
            )


def _take(expansion: Expansion, place: _Place, name: str, value: Any) -> None:
    section, key = place
    node = expansion.data.get(section)
    if node is None and section not in expansion.data:
        node = expansion.data[section] = {}
    if not isinstance(node, dict):
        return  # told as a fault of the section
    # A second selector of the token is told by the rule that there is only one.
    if node.get(key) and place not in _SELECTORS:
        expansion.faults.append((place, f"is in token.uri too ({name})"))
    node[key] = value
