"""Replace `token.uri` by the settings that the URI gives."""

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
    """Hold the file's data with the settings of `token.uri` in their own places.

    Args:
        data: The data, as if each setting had been given by its own key.
        faults: Place and message of each fault of the URI.
        broken: True if the URI cannot be parsed, so its settings are unknown.
    """

    data: Any
    faults: list[tuple[_Place, str]] = field(default_factory=list)
    broken: bool = False


def expand(data: Mapping[str, Any]) -> Expansion:
    """Put the settings of the file's `token.uri` in their own places.

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
        message = "must select a token: token, serial, manufacturer, model or slot-id"
        expansion.faults.append((URI, message))
    for place, name, value in _values(parsed):
        _take(expansion, place, name, value)
    if isinstance(keys, dict) and parsed.id is not None and parsed.object is None:
        # The URI selects the key by its CKA_ID alone: any label matches.
        whole["keys"].setdefault("label", None)
    return expansion


def given_by(uri: str) -> tuple[_Place, ...]:
    """Return the places of the settings that a URI gives.

    Args:
        uri: A URI in which `expand` found no fault.
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
        return  # the schema reports the section
    # `load` reports a second selector of the token: exactly one is allowed.
    if node.get(key) and place not in _SELECTORS:
        expansion.faults.append((place, f"is given in token.uri too ({name})"))
    node[key] = value
