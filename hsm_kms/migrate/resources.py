"""Find the resources to migrate, and where the API server serves them.

Resources are named as in an EncryptionConfiguration: `secrets`, `deployments.apps`,
`widgets.example.com`; `*.apps` is a whole group, `*.` the core group, `*.*` everything.
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
    """Hold the name of a resource as the user gave it.

    Args:
        name: Plural name of the resource, or "*".
        group: Group of the resource; "" for the core group, "*" for all groups.
    """

    name: str
    group: str

    def __str__(self) -> str:
        """Return the name as the user gave it."""
        return f"{self.name}.{self.group}" if self.group else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Describe a resource that the API server serves.

    Args:
        name: Plural name of the resource.
        group: Group of the resource; "" for the core group.
        version: Version that the API server prefers.
        namespaced: True if the objects are in namespaces.
    """

    name: str
    group: str
    version: str
    namespaced: bool

    def __str__(self) -> str:
        """Return the name of the resource as kubectl writes it."""
        return f"{self.name}.{self.group}" if self.group else self.name

    def path(self, namespace: str | None = None) -> str:
        """Return the URL path that lists the objects.

        Args:
            namespace: The only namespace to list, or None for all. It is ignored if
                the objects are in no namespace.
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
        """Return the versions of the group, the preferred one first."""
        every = [self.preferred_version, *self.versions]
        return list(dict.fromkeys(each.version for each in every))


class _GroupList(msgspec.Struct, frozen=True):
    groups: tuple[_Group, ...] = ()


def parse_resource(text: str) -> Wanted:
    """Parse the name of a resource.

    Raises:
        ConfigError: The text is not the name of a resource.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        forms = "secrets, deployments.apps, *.apps, or *.* for everything"
        raise ConfigError([f"{text!r} is not a resource; give {forms}"])
    return Wanted(found[1] or found[3], found[2] or found[4] or "")


def find_resources(api: Api, wanted: Sequence[Wanted]) -> list[Resource]:
    """Return the resources that the API server serves under these names, each once.

    Raises:
        HsmKmsError: The API server does not serve one of them, or does not allow to
            list and update it.
    """
    found: dict[str, Resource] = {}
    for each in wanted:
        for resource in _find(api, each):
            found.setdefault(str(resource), resource)
    return list(found.values())


def served_versions(api: Api, group: str) -> list[str]:
    """Return the versions of a group, the preferred one first; none if not served.

    Args:
        api: The API server.
        group: The group; "" for the core group.

    Raises:
        HsmKmsError: The API server could not be asked.
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
            f"the API server has no resource {wanted} that can be listed and updated",
            hint="add the API group to the name, as in deployments.apps; "
            "`kubectl api-resources` lists all resources",
        )
    return found


def _groups(api: Api, wanted: Wanted) -> list[str]:
    if wanted.group != _ANY:
        return [wanted.group]
    groups = _told(api.get("/apis"), _GroupList).groups
    return ["", *(group.name for group in groups)]


def _served(api: Api, group: str) -> Iterator[Resource]:
    """Yield the resources of a group that can be migrated, preferred version first."""
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
        raise refused("discover the API's resources", answer)
    return decoded(answer.body, kind)
