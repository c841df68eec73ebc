"""Drive StorageVersionMigrations, with which a cluster re-encrypts on its own.

1.  The name says which key and resource a migration is for, and its number, so that a
    second run finds what an interrupted run has created.
2.  A migration ends for good when it succeeds or fails: another one has the next
    number.
3.  The message of a condition may quote the refusal of a webhook. Only its known words
    are repeated; kubectl shows the rest.
"""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from hsm_kms.etcd.text import printable
from hsm_kms.migrate.api import decoded, refused
from hsm_kms.migrate.manifest import GROUP, manifest
from hsm_kms.migrate.refusals import known_words

if TYPE_CHECKING:
    from hsm_kms.migrate.api import Answer, Api
    from hsm_kms.migrate.resources import Resource

_MAX_REASON_CHARS: Final = 100
_SUCCEEDED: Final = "Succeeded"
_FAILED: Final = "Failed"


class _Condition(msgspec.Struct, frozen=True, rename="camel"):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _Status(msgspec.Struct, frozen=True):
    conditions: list[_Condition] | None = None


class _Found(msgspec.Struct, frozen=True):
    status: _Status = _Status()


class Progress(NamedTuple):
    """Say how a migration stands.

    Args:
        name: Name of the StorageVersionMigration.
        condition: Type of its last condition that is true; "" before there is one.
        why: Reason and known words of the message of that condition.
    """

    name: str
    condition: str = ""
    why: str = ""

    @property
    def ended(self) -> bool:
        """Return True if the migration succeeded or failed."""
        return self.condition in {_SUCCEEDED, _FAILED}

    @property
    def failed(self) -> bool:
        """Return True if the migration failed."""
        return self.condition == _FAILED

    def __str__(self) -> str:
        """Return the name and the condition in words."""
        state = self.condition or "no condition yet"
        return f"{self.name}: {state}{self.why and f' ({self.why})'}"


class StorageVersionMigrations:
    """Create and read the migrations for one key.

    Args:
        api: The API server, through a proxy with `MIGRATING`.
        version: The served version of the group.
        key: The fingerprint of the new key.
    """

    def __init__(self, api: Api, version: str, key: str) -> None:
        self._api = api
        self._version = version
        self._key = key
        self._path = f"/apis/{GROUP}/{version}/storageversionmigrations"

    def current(self, resource: Resource) -> Progress:
        """Return the migration of a resource that has not ended; create it if needed.

        Raises:
            HsmKmsError: The API server refuses.
        """
        number = 1
        while True:
            name = f"hsm-kms-{self._key}-{resource}-{number}"
            found = self.read(name)
            if found is None:
                return self._create(resource, name)
            if not found.ended:
                return found
            number += 1

    def read(self, name: str) -> Progress | None:
        """Return how a migration stands; None if there is none with this name.

        Raises:
            HsmKmsError: The API server refuses.
        """
        answer = self._api.get(f"{self._path}/{name}")
        if answer.code == http.HTTPStatus.NOT_FOUND:
            return None
        if answer.code != http.HTTPStatus.OK:
            raise refused("get StorageVersionMigrations", answer)
        return _progress(name, answer)

    def _create(self, resource: Resource, name: str) -> Progress:
        body = msgspec.json.encode(manifest(resource, self._version, name))
        answer = self._api.post(self._path, body)
        if answer.code not in {http.HTTPStatus.CREATED, http.HTTPStatus.CONFLICT}:
            raise refused("create StorageVersionMigrations", answer)
        return Progress(name)


def _progress(name: str, answer: Answer) -> Progress:
    conditions = decoded(answer.body, _Found).status.conditions or []
    true = {each.type: each for each in conditions if each.status == "True"}
    for kind in (_FAILED, _SUCCEEDED):
        if kind in true:
            return Progress(name, kind, _why(true[kind]))
    last = next(reversed(true.values()), None)
    if last is None:
        return Progress(name)
    return Progress(name, printable(last.type, _MAX_REASON_CHARS), _why(last))


def _why(condition: _Condition) -> str:
    words = known_words(condition.message)
    parts = [printable(condition.reason, _MAX_REASON_CHARS), words]
    return ": ".join(filter(None, parts))
