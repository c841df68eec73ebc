"""Read the few fields of an object that are needed, and compare two forms of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from hsm_kms.etcd.text import printable
from hsm_kms.migrate.api import decoded

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_FIELDS: Final = 5
_MAX_CHARS: Final = 120
# Fields that every write may change, and that a list leaves out of its items.
_OF_A_WRITE: Final = frozenset({"resourceVersion", "managedFields", "generation"})
_OF_A_LIST: Final = frozenset({"apiVersion", "kind"})
# Maps whose keys are chosen by users.
_MAPS: Final = frozenset({"data", "binaryData", "labels", "annotations"})


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """Describe the fields of `metadata` that are needed."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""

    def __str__(self) -> str:
        """Return namespace/name, or name."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Object(msgspec.Struct, frozen=True):
    """Describe an object."""

    metadata: Meta


class _List(msgspec.Struct, frozen=True):
    items: list[Object] | None = None


def meta_of(body: bytes) -> Meta:
    """Return the metadata of an object.

    Args:
        body: The object as JSON.

    Raises:
        ApiError: The body is not an object.
    """
    return decoded(body, Object).metadata


def names_in(body: bytes) -> list[str]:
    """Return the names of the objects in a list.

    Args:
        body: The list as JSON.

    Raises:
        ApiError: The body is not a list.
    """
    return [each.metadata.name for each in decoded(body, _List).items or []]


def changed_fields(sent: bytes, received: bytes) -> str:
    """Name the fields in which a response differs from what was sent.

    Fields that every write may change are ignored.

    Args:
        sent: The object as JSON, as it was sent.
        received: The object as JSON, as it came back.

    Returns:
        Names of fields, such as "data[password], metadata.labels[app]", without any
        value; "" if nothing differs.
    """
    before, after = msgspec.json.decode(sent), msgspec.json.decode(received)
    for form in (before, after):
        _drop(form, _OF_A_LIST)
        _drop(form["metadata"], _OF_A_WRITE)
    names = [printable(name, _MAX_CHARS) for name in _differing(before, after, "")]
    more = len(names) - _MAX_FIELDS
    return ", ".join(names[:_MAX_FIELDS]) + (f" and {more} more" if more > 0 else "")


def _drop(form: dict[str, Any], names: frozenset[str]) -> None:
    for name in names:
        form.pop(name, None)


def _differing(before: Any, after: Any, path: str) -> Iterator[str]:
    if not before and not after:  # {}, [], "" and a missing field mean the same
        return
    if not isinstance(before or {}, dict) or not isinstance(after or {}, dict):
        if before != after:
            yield path
        return
    before, after = before or {}, after or {}
    in_map = path.rpartition(".")[2] in _MAPS
    for key in sorted(before.keys() | after.keys()):
        below = f"{path}[{key}]" if in_map else f"{path}.{key}".lstrip(".")
        yield from _differing(before.get(key), after.get(key), below)
