"""Which resources are meant, and where the API server serves them.

They are named as in an EncryptionConfiguration: `secrets`, `deployments.apps`,
`widgets.example.com`; `*.apps` is a whole group, `*.` the core group, `*.*` all.
"""

from __future__ import annotations

import http
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from hsm_kms.errors import ConfigError
from hsm_kms.migrate.api import ApiError, decoded, refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hsm_kms.migrate.api import Answer, Api

_NAME: Final = re.compile(r"([a-z0-9-]+)(?:\.([a-z0-9.-]+))?|(\*)\.([a-z0-9.-]*|\*)")
_NEEDED: Final = frozenset({"get", "list", "update"})
_ANY: Final = "*"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A resource as somebody named it.

    Args:
        name: Its plural name, or "*".
        group: "" for the core group, or "*".
    """

    name: str
    group: str

    def __str__(self) -> str:
        """As it was named."""
        return f"{self.name}.{self.group}" if self.group else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A resource that the API server serves.

    Args:
        name: Its plural name.
        group: "" for the core group.
        version: The one the API server prefers.
        namespaced: Its objects are in namespaces.
    """

    name: str
    group: str
    version: str
    namespaced: bool

    def __str__(self) -> str:
        """As kubectl names it."""
        return f"{self.name}.{self.group}" if self.group else self.name

    def path(self, namespace: str | None = None) -> str:
        """Where its objects are listed.

        Args:
            namespace: Only those in one; None, or no namespaces: all.
        """
        root = f"/apis/{self.group}" if self.group else "/api"
        inside = f"/namespaces/{namespace}" if namespace and self.namespaced else ""
        return f"{root}/{self.version}{inside}/{self.name}"


class _Resource(msgspec.Struct, frozen=True):
    name: str
    namespaced: bool = False
    verbs: frozenset[str] = frozenset()


class _ResourceList(msgspec.Struct, frozen=True):
    resources: tuple[_Resource, ...] = ()


class _Version(msgspec.Struct, frozen=True):
    version: str


class _Group(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    versions: tuple[_Version, ...]
    preferred_version: _Version

    @property
    def by_preference(self) -> list[str]:
        """Its versions, the preferred one first."""
        every = [self.preferred_version, *self.versions]
        return list(dict.fromkeys(each.version for each in every))


class _GroupList(msgspec.Struct, frozen=True):
    groups: tuple[_Group, ...] = ()


def parse_resource(text: str) -> Wanted:
    """Read the name of a resource.

    Raises:
        ConfigError: It is not one.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        forms = "secrets, deployments.apps, *.apps, or *.* for everything"
        raise ConfigError([f"{text!r} names no resource; it is {forms}"])
    return Wanted(found[1] or found[3], found[2] or found[4] or "")


def find_resources(api: Api, wanted: Sequence[Wanted]) -> list[Resource]:
    """Where the API server serves these resources, each once.

    Raises:
        HsmKmsError: It does not serve one, or not so that it can be migrated.
    """
    found: dict[str, Resource] = {}
    for each in wanted:
        for resource in _find(api, each):
            found.setdefault(str(resource), resource)
    return list(found.values())


def served_versions(api: Api, group: str) -> list[str]:
    """The versions of a group, the preferred one first; none where it is not served.

    Args:
        api: The API server.
        group: "" for the core group.

    Raises:
        HsmKmsError: The API server does not say.
    """
    if not group:
        return ["v1"]
    answer = api.get(f"/apis/{group}")
    if answer.code == http.HTTPStatus.NOT_FOUND:
        return []
    return _told(answer, _Group).by_preference


def _find(api: Api, wanted: Wanted) -> list[Resource]:
    found = [
        resource
        for group in _groups(api, wanted)
        for resource in _served(api, group)
        if wanted.name in {_ANY, resource.name}
    ]
    if not found:
        raise ApiError(
            f"the API server serves no {wanted} that can be listed and updated",
            hint="outside the core group the group belongs to the name, as in "
            "deployments.apps; `kubectl api-resources` lists them",
        )
    return found


def _groups(api: Api, wanted: Wanted) -> list[str]:
    if wanted.group != _ANY:
        return [wanted.group]
    groups = _told(api.get("/apis"), _GroupList).groups
    return ["", *(group.name for group in groups)]


def _served(api: Api, group: str) -> Iterator[Resource]:
    """What can be migrated of a group, in the preferred version first."""
    for version in served_versions(api, group):
        root = f"/apis/{group}" if group else "/api"
        answer = api.get(f"{root}/{version}")
        for each in _told(answer, _ResourceList).resources:
            if "/" not in each.name and each.verbs >= _NEEDED:
                yield Resource(
                    name=each.name,
                    group=group,
                    version=version,
                    namespaced=each.namespaced,
                )


def _told(answer: Answer, kind: type[_T]) -> _T:
    if answer.code != http.HTTPStatus.OK:
        raise refused("tell what it serves", answer)
    return decoded(answer.body, kind)
