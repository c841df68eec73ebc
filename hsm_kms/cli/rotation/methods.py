"""Choose how objects are re-encrypted: by us, by the cluster, or elsewhere."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final, Protocol

from hsm_kms.cli.migrate.run import Request, re_encrypt
from hsm_kms.cli.rotation.steps import Seen, waiting
from hsm_kms.cli.streams import tell
from hsm_kms.clock import now
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.migrate import journal as journals
from hsm_kms.migrate.api import connected
from hsm_kms.migrate.kubectl import MIGRATING, REWRITING, running_proxy
from hsm_kms.migrate.manifest import require_version
from hsm_kms.migrate.resources import find_resources, parse_resource
from hsm_kms.migrate.storage_version import StorageVersionMigrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hsm_kms.cli.rotation.world import World
    from hsm_kms.migrate.api import Api
    from hsm_kms.migrate.resources import Resource
    from hsm_kms.migrate.storage_version import Progress

MIGRATE: Final = "migrate"
STORAGE_VERSION: Final = "storage-version-migration"
ELSEWHERE: Final = "elsewhere"
_SCAN_SECONDS: Final = 10.0
NAMES: Final = (MIGRATE, STORAGE_VERSION, ELSEWHERE)


class Method(Protocol):
    """Re-encrypt objects."""

    def plan(self) -> str:
        """Return what `run` would do, after trying whether it can.

        Raises:
            HsmKmsError: It cannot.
        """

    def run(self) -> None:
        """Re-encrypt the objects, or go on where an interrupted run stopped.

        Raises:
            HsmKmsError: Not all of them were re-encrypted.
        """


def method_for(world: World, progress: Path) -> Method:
    """Return the method that the journal names.

    Args:
        world: The rotation, and what the command was given.
        progress: Where `migrate` keeps its progress.
    """
    if world.rotation.method == MIGRATE:
        return _Migrate(world, progress)
    if world.rotation.method == STORAGE_VERSION:
        return _StorageVersion(world)
    return _Elsewhere(world)


@contextlib.contextmanager
def _connected(
    world: World, flags: tuple[str, ...]
) -> Iterator[tuple[Api, list[Resource]]]:
    """Connect to the API server, and find the resources of the rotation.

    Args:
        world: The rotation, and what the command was given.
        flags: `REWRITING` or `MIGRATING`.
    """
    kubectl, names = world.means.kubectl, world.rotation.resources
    kubectl.server()  # which says what is wrong with the kubeconfig
    with running_proxy(kubectl, flags) as proxy, connected(proxy) as api:
        found = find_resources(api, list(map(parse_resource, names)))
        yield api, list(found.resources.values())


class _Migrate:
    def __init__(self, world: World, progress: Path) -> None:
        self._world = world
        self._progress = progress

    def plan(self) -> str:
        with _connected(self._world, REWRITING) as (_, resources):
            names = ", ".join(map(str, resources))
        return f"`hsm-kms migrate` re-encrypts {names}"

    def run(self) -> None:
        means = self._world.means
        request = Request(
            kubectl=means.kubectl,
            names=tuple(self._world.rotation.resources),
            rate=means.rate,
            file=self._progress,
            allow_changes=means.allow_changes,
            advice=False,
        )
        try:
            journals.load(self._progress, request.scope())
        except ConfigError:  # of other resources, or by another name of the server
            self._progress.unlink()
        re_encrypt(request)


class _StorageVersion:
    def __init__(self, world: World) -> None:
        self._world = world

    def plan(self) -> str:
        with self._migrating() as (_, version, resources):
            names = ", ".join(map(str, resources))
            return f"a StorageVersionMigration ({version}) re-encrypts {names}"

    def run(self) -> None:
        new = fingerprint_in(self._world.rotation.new_key or "")
        with self._migrating() as (api, version, resources):
            migrations = StorageVersionMigrations(api, version, new)
            for resource in resources:
                first = migrations.current(resource)
                tell(f"the cluster migrates {resource}, see {first.name}")
                self._watch(migrations, first)

    @contextlib.contextmanager
    def _migrating(self) -> Iterator[tuple[Api, str, list[Resource]]]:
        with _connected(self._world, MIGRATING) as (api, resources):
            try:
                version = require_version(api)
            except HsmKmsError as error:
                error.hint = f"{error.hint}: give --with {MIGRATE}"
                raise
            yield api, version, resources

    def _watch(self, migrations: StorageVersionMigrations, first: Progress) -> None:
        last, left = first, _Left(self._world)

        def look() -> Seen:
            nonlocal last
            last = migrations.read(first.name) or first
            return Seen(last.ended, str(last) if last.ended else f"{last}; {left}")

        try:
            seen = waiting(look, now() + self._world.means.wait)
        except HsmKmsError as error:
            if not last.condition:
                error.hint = (
                    "does kube-controller-manager run the controller "
                    "storage-version-migrator-controller? give --with migrate to "
                    "go on without it"
                )
            raise
        tell(seen.text)
        if last.failed:
            raise HsmKmsError(
                f"the StorageVersionMigration failed: {last}",
                hint=f"see `kubectl get storageversionmigration {last.name} -o yaml`; "
                "the next run makes a new one, and --with migrate names each object "
                "that is refused",
            )


class _Left:
    """Say how many objects are left under the old key, by a scan now and then."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._text = ""
        self._due = 0.0

    def __str__(self) -> str:
        if time.monotonic() >= self._due:
            self._world.forget_etcd()
            (tally, _), count = self._world.tally(), self._world.under_old()
            self._text = f"{count} of {tally.total} objects are left"
            self._due = time.monotonic() + _SCAN_SECONDS
        return self._text


class _Elsewhere:
    def __init__(self, world: World) -> None:
        self._world = world

    def plan(self) -> str:
        return f"you run `{self._line()}` where your kubectl is"

    def run(self) -> None:
        (tally, where), count = self._world.tally(), self._world.under_old()
        raise HsmKmsError(
            f"{count} of {tally.total} objects in {where} are stored under "
            f"{self._world.rotation.old_key}",
            hint=f"run `{self._line()}` where your kubectl is",
        )

    def _line(self) -> str:
        names = self._world.rotation.resources
        options = [] if names == ["secrets"] else [f"--resource '{n}'" for n in names]
        return " ".join(["hsm-kms migrate", *options])
