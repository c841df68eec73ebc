"""Find the resources to migrate, and where the API server serves them.

Resources are named as in an EncryptionConfiguration: `secrets`, `deployments.apps`,
`widgets.example.com`; `*.apps` is a whole group, `*.` the core group, `*.*` everything.
"""

from __future__ import annotations

import http
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from hsm_kms.errors import ConfigError
from hsm_kms.migrate.api import ApiError, decoded, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.migrate.api import Answer, Api

_NAME: Final = re.compile(r"([a-z0-9-]+)(?:\.([a-z0-9.-]+))?|(\*)\.([a-z0-9.-]*|\*)")
_NEEDED: Final = frozenset({"get", "list", "update"})
_READING: Final = frozenset({"get", "list"})
_NOT_STORED: Final = frozenset({"componentstatuses"})  # made when they are read
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


class _ApiServiceSpec(msgspec.Struct, frozen=True):
    group: str = ""
    service: dict[str, Any] | None = None


class _ApiService(msgspec.Struct, frozen=True):
    spec: _ApiServiceSpec


class _ApiServices(msgspec.Struct, frozen=True):
    items: list[_ApiService] | None = None


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


@dataclass(slots=True)
class Found:
    """Hold what was found under the names that the user gave.

    Args:
        resources: The resources to migrate, by name.
        skipped: Why a resource or a group ("*.GROUP") cannot be migrated, by name.
        elsewhere: Groups that another API server serves and stores.
    """

    resources: dict[str, Resource] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)

    def add(self, other: Found) -> None:
        """Add what was found under another name."""
        self.resources |= other.resources
        self.skipped |= other.skipped
        self.elsewhere |= other.elsewhere


def find_resources(api: Api, wanted: Sequence[Wanted]) -> Found:
    """Find the resources that the API server serves under these names.

    What a name with "*" stands for is skipped if it cannot be migrated.

    Raises:
        HsmKmsError: The API server does not serve one of the names, or does not allow
            to list and update it.
    """
    aggregated = _aggregated(api) if any(each.group for each in wanted) else frozenset()
    found = Found()
    for each in wanted:
        found.add(_find(api, each, aggregated))
    return found


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


def _find(api: Api, wanted: Wanted, aggregated: frozenset[str]) -> Found:
    if wanted.group != _ANY:
        return _named(api, wanted, aggregated)
    found = Found(elsewhere=set(aggregated))
    groups = _told(api.get("/apis"), _GroupList).groups
    for group in ["", *(group.name for group in groups)]:
        if group not in aggregated:
            found.add(_find_or_skip(api, wanted, group))
    return found


def _named(api: Api, wanted: Wanted, aggregated: frozenset[str]) -> Found:
    if wanted.group in aggregated:
        raise ApiError(
            f"{wanted.group} is served by another API server, which stores its objects",
            hint="re-encrypt them in the way of that API server",
        )
    found = _in_group(api, wanted, wanted.group)
    if found.resources or (found.skipped and wanted.name == _ANY):
        return found
    raise ApiError(
        f"the API server has no resource {wanted} that can be listed and updated",
        hint="add the API group to the name, as in deployments.apps; "
        "`kubectl api-resources` lists all resources",
    )


def _find_or_skip(api: Api, wanted: Wanted, group: str) -> Found:
    try:
        return _in_group(api, wanted, group)
    except ApiError as error:
        api.get("/api")  # raises if the API server itself is unreachable
        return Found(skipped={f"*.{group}": str(error)})


def _in_group(api: Api, wanted: Wanted, group: str) -> Found:
    """Find the matching resources of a group, each in the version that is preferred."""
    found = Found()
    for version in served_versions(api, group):
        root = f"/apis/{group}" if group else "/api"
        answer = api.get(f"{root}/{version}")
        for each in _told(answer, _ResourceList).resources:
            if "/" in each.name or wanted.name not in {_ANY, each.name}:
                continue
            resource = Resource(
                name=each.name,
                group=group,
                version=version,
                namespaced=each.namespaced,
            )
            if each.verbs >= _NEEDED:
                found.resources.setdefault(str(resource), resource)
            elif each.verbs & _READING and str(resource) not in _NOT_STORED:
                lacking = ", ".join(sorted(_NEEDED - each.verbs))
                found.skipped[str(resource)] = f"the API server has no {lacking} for it"
    for name in found.resources:
        found.skipped.pop(name, None)  # only another version lacks something
    return found


def _aggregated(api: Api) -> frozenset[str]:
    """Return the groups that another API server serves; none if that is forbidden."""
    answer = api.get("/apis/apiregistration.k8s.io/v1/apiservices")
    if answer.code != http.HTTPStatus.OK:
        return frozenset()
    services = decoded(answer.body, _ApiServices).items or []
    return frozenset(each.spec.group for each in services if each.spec.service)


def _told(answer: Answer, kind: type[_T]) -> _T:
    if answer.code != http.HTTPStatus.OK:
        raise refused("discover the API's resources", answer)
    return decoded(answer.body, kind)
