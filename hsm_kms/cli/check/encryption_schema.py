"""Define an EncryptionConfiguration, and read one as strictly as kube-apiserver does.

The fields are those of apiserver.config.k8s.io/v1. No message quotes a value or an
unknown field, because the file may contain keys of other providers.
"""

from __future__ import annotations

import difflib
import itertools
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hsm_kms.config.strict_yaml import Document, read_yaml
from hsm_kms.errors import HsmKmsError

GROUP: Final = "apiserver.config.k8s.io/v1"
KIND: Final = "EncryptionConfiguration"

_MESSAGES: Final = {
    "dict_type": "must be a mapping",
    "extra_forbidden": "unknown field, which Kubernetes refuses from 1.31 on",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "missing": "is required",
    "model_type": "must be a mapping",
    "string_type": "must be text; quote numbers, yes and no",
    "too_short": "must not be empty",
}


class _Part(BaseModel):
    """Base of all parts: strict types, no unknown field, no values in messages."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )


class Kms(_Part):
    """Describe a KMS plugin."""

    api_version: str | None = Field(default=None, alias="apiVersion")
    name: str
    endpoint: str
    cachesize: int | None = None
    timeout: str | None = None


class _Key(_Part):
    name: str
    secret: str = Field(repr=False)


class Keys(_Part):
    """Describe a provider whose keys are in the file."""

    keys: Annotated[list[_Key], Field(min_length=1)]


class Identity(_Part):
    """Describe the provider that does not encrypt."""


class Provider(_Part):
    """Hold one provider; exactly one field is set."""

    kms: Kms | None = None
    aesgcm: Keys | None = None
    aescbc: Keys | None = None
    secretbox: Keys | None = None
    identity: Identity | None = None

    @property
    def kinds(self) -> list[str]:
        """Return the names of the fields that are set."""
        return [
            name for name in type(self).model_fields if getattr(self, name) is not None
        ]


class Entry(_Part):
    """Say which providers encrypt and decrypt some resources."""

    resources: Annotated[list[str], Field(min_length=1)]
    providers: Annotated[list[Provider], Field(min_length=1)]


class EncryptionConfiguration(_Part):
    """Describe the whole file."""

    api_version: Literal["apiserver.config.k8s.io/v1"] = Field(alias="apiVersion")
    kind: Literal["EncryptionConfiguration"]
    resources: Annotated[list[Entry], Field(min_length=1)]


class FileError(HsmKmsError):
    """Raised when the file is not an EncryptionConfiguration; `faults` lists why."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def parse(text: str) -> EncryptionConfiguration:
    """Return the content of a file.

    Args:
        text: The file.

    Raises:
        ConfigError: The text is not YAML.
        FileError: It is something else than an EncryptionConfiguration.
    """
    document = read_yaml(text)
    faults = [
        f"{_at(place)}duplicate field on lines {first} and {second}"
        for place, first, second in document.twice
    ]
    try:
        found = EncryptionConfiguration.model_validate(document.data)
    except ValidationError as error:
        faults += [
            _fault(document, tuple(map(str, each["loc"])), each["type"])
            for each in error.errors()
        ]
        raise FileError(faults) from None
    if faults:
        raise FileError(faults)
    return found


def _fault(document: Document, place: tuple[str, ...], kind: str) -> str:
    message = _MESSAGES.get(kind, "is not valid")
    if kind == "literal_error":
        message = f"must be {GROUP if place == ('apiVersion',) else KIND}"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(place[-1].lower(), _LOWER, n=1)
        message += f"; did you mean {_LOWER[near[0]]}?" if near else ""
    line = document.lines.get(place)
    where = f" (line {line})" if line else ""
    return f"{_at(place)}{message}{where}"


def _at(place: tuple[str, ...]) -> str:
    """Return where a fault is, up to the first unknown field, which is not quoted."""
    known = itertools.takewhile(lambda part: part.isdecimal() or part in _KNOWN, place)
    path = dotted(tuple(known))
    return f"{path}: " if path else ""


def dotted(place: tuple[str, ...]) -> str:
    """Return a path as kube-apiserver writes it: resources[0].providers[1].kms.name."""
    parts = (f"[{part}]" if part.isdecimal() else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")


_KNOWN: Final = frozenset(
    field.alias or name
    for part in (EncryptionConfiguration, Entry, Provider, Kms, Keys, _Key)
    for name, field in part.model_fields.items()
)
_LOWER: Final = {name.lower(): name for name in _KNOWN}
