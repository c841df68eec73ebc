"""Parse PKCS#11 URIs (RFC 7512) that select a module, a token and a key.

Parsing is strict: unknown attributes, duplicate attributes and wrong encodings are
refused, because an attribute that is ignored could be the one that tells two tokens
apart. No message quotes the URI, because the URI may contain a PIN.

Two deviations from RFC 7512 are accepted because other programs accept them too:
`module-path` in the path, with plain slashes, and `pin-source` as a plain path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_URI_CHARACTERS: Final = 4096
MAX_PATH_BYTES: Final = 1024
MAX_ID_BYTES: Final = 255
MAX_SLOT: Final = 2**63 - 1

_SCHEME: Final = "pkcs11:"
_UNRESERVED: Final = r"A-Za-z0-9._~\-"
_PATH_VALUE: Final = re.compile(rf"(?:[{_UNRESERVED}:\[\]@!$'()*+,=&]|%[^%]{{2}})*")
_QUERY_VALUE: Final = re.compile(rf"(?:[{_UNRESERVED}:\[\]@!$'()*+,=/?|]|%[^%]{{2}})*")
_FILE_PATH: Final = re.compile(rf"(?:[{_UNRESERVED}:@!$&'()*+,;=/]|%[^%]{{2}})*")
_PERCENT: Final = re.compile("%([0-9a-fA-F]{2})?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_VERSION: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkcs11Uri:
    """Hold the attributes of a URI; None for an attribute that the URI does not have.

    Args:
        token: Label of the token.
        serial: Serial number of the token.
        manufacturer: Manufacturer of the token.
        model: Model of the token.
        slot_id: CK_SLOT_ID of the token's slot.
        library_manufacturer: Manufacturer of the module.
        library_description: Description of the module.
        library_version: Version of the module, as "2.6".
        object: CKA_LABEL of the key.
        id: CKA_ID of the key.
        type: Always "secret-key".
        module_path: Absolute path of the module.
        pin_source: Absolute path of the file that holds the PIN.
    """

    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_id: int | None = None
    library_manufacturer: str | None = None
    library_description: str | None = None
    library_version: str | None = None
    object: str | None = None
    id: bytes | None = None
    type: str | None = None
    module_path: str | None = None
    pin_source: str | None = None

    @property
    def names_a_token(self) -> bool:
        """Return True if an attribute of the URI tells one token from another."""
        parts = (self.token, self.serial, self.manufacturer, self.model, self.slot_id)
        return any(part is not None for part in parts)

    @property
    def library(self) -> dict[str, str]:
        """Return what the module must report of itself, by attribute name."""
        parts = {
            "library-manufacturer": self.library_manufacturer,
            "library-description": self.library_description,
            "library-version": self.library_version,
        }
        return {name: part for name, part in parts.items() if part is not None}


def parse(text: str) -> Pkcs11Uri:
    """Parse a PKCS#11 URI.

    Args:
        text: The URI, at most `MAX_URI_CHARACTERS` characters.

    Raises:
        ValueError: The URI is refused; the message quotes nothing of the text.
    """
    if len(text) > MAX_URI_CHARACTERS:
        raise ValueError(f"must be at most {MAX_URI_CHARACTERS} characters long")
    if text[: len(_SCHEME)].lower() != _SCHEME:
        raise ValueError("must begin with pkcs11:")
    path, question, query = text[len(_SCHEME) :].partition("?")
    found: dict[str, object] = {}
    for name, value in [
        *_attributes(path, ";", "path"),
        *(_attributes(query, "&", "query") if question else ()),
    ]:
        field = name.replace("-", "_")
        if field in found:
            raise ValueError(f"must not have {name} twice")
        found[field] = _READERS[name](name, value)
    return Pkcs11Uri(**found)  # type: ignore[arg-type]  # one reader per field


def _attributes(part: str, separator: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield name and percent-encoded value of each attribute of one part."""
    for attribute in part.split(separator) if part else ():
        name, equals, value = attribute.partition("=")
        if not equals:
            raise ValueError("must consist of attributes of the form name=value")
        if name in _REFUSED:
            raise ValueError(_REFUSED[name])
        if name not in _READERS:
            raise ValueError("must not have attributes that hsm-kms does not know")
        if name not in _PLACES[where]:
            raise ValueError(f"must not have {name} in its {where}")
        # RFC 7512 allows slashes in the query only; module-path may be in the path.
        in_query = where == "query" or name == "module-path"
        if not (_QUERY_VALUE if in_query else _PATH_VALUE).fullmatch(value):
            raise ValueError(f"must have {name} percent-encoded (RFC 7512)")
        yield name, value


def _octets(name: str, value: str) -> bytes:
    def octet(found: re.Match[str]) -> str:
        if found[1] is None:
            raise ValueError(f"must have two hex digits after each % in {name}")
        return chr(int(found[1], 16))

    # All other characters are ASCII: the caller matched them against RFC 7512.
    return _PERCENT.sub(octet, value).encode("latin-1")


def _text(most: int) -> Callable[[str, str], str]:
    def read(name: str, value: str) -> str:
        octets = _octets(name, value)
        if not 1 <= len(octets) <= most:
            raise ValueError(f"must have {name} of 1 to {most} bytes")
        try:
            text = octets.decode()
        except UnicodeDecodeError:
            raise ValueError(f"must have {name} in UTF-8") from None
        if _CONTROL.search(text):
            raise ValueError(f"must not have control characters in {name}")
        return text

    return read


def _id(name: str, value: str) -> bytes:
    # RFC 7512 has each byte encoded. `id=1000` means hex digits to some programs and
    # four characters to others, so it is refused.
    if not re.fullmatch("(?:%..)+", value):
        raise ValueError("must have each byte of id percent-encoded: id=%10%00")
    octets = _octets(name, value)
    if len(octets) > MAX_ID_BYTES:
        raise ValueError(f"must have {name} of 1 to {MAX_ID_BYTES} bytes")
    return octets


def _slot_id(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value) or int(value) > MAX_SLOT:
        raise ValueError(f"must have a whole number for {name}")
    return int(value)


def _type(name: str, value: str) -> str:
    if value != "secret-key":
        raise ValueError(f"must have {name}=secret-key, or no {name}")
    return value


def _version(name: str, value: str) -> str:
    if not _VERSION.fullmatch(value):
        raise ValueError(f"must have {name} in the form MAJOR or MAJOR.MINOR")
    major, _, minor = value.partition(".")
    return f"{int(major)}.{int(minor or 0)}"


def _path(name: str, value: str) -> str:
    path = _text(MAX_PATH_BYTES)(name, value)
    if not path.startswith("/"):
        raise ValueError(f"must have an absolute path for {name}")
    return path


def _pin_source(name: str, value: str) -> str:
    source = _text(MAX_PATH_BYTES)(name, value)
    if source.startswith("|"):
        raise ValueError(f"must not have a command for {name}: hsm-kms runs none")
    if not source.startswith("file:"):
        return _path(name, value)
    path = source.removeprefix("file:")
    if path.startswith("//"):
        path = path.removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"must not have a host in {name}: write file:///path")
    # The value is a URI itself, with percent-encoding of its own.
    if not _FILE_PATH.fullmatch(path):
        raise ValueError(f"must have a plain path or a file: URI for {name}")
    return _path(name, path)


_READERS: Final[dict[str, Callable[[str, str], object]]] = {
    "token": _text(32),
    "serial": _text(16),
    "manufacturer": _text(32),
    "model": _text(16),
    "slot-id": _slot_id,
    "library-manufacturer": _text(32),
    "library-description": _text(32),
    "library-version": _version,
    "object": _text(255),
    "id": _id,
    "type": _type,
    "module-path": _path,
    "pin-source": _pin_source,
}
_QUERY: Final = {"module-path", "pin-source"}
_PLACES: Final = {"query": _QUERY, "path": _READERS.keys() - {"pin-source"}}
_REFUSED: Final = {
    "pin-value": "must not contain a PIN (pin-value); name the PIN file in pin-source",
    "module-name": "must not have module-name; give the module's path in module-path",
    "slot-manufacturer": "must select a token, not a slot (slot-manufacturer)",
    "slot-description": "must select a token, not a slot (slot-description)",
}
