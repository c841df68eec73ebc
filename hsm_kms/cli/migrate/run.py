"""Re-encrypt objects through the API server, and print the result."""

from __future__ import annotations

import http
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from hsm_kms.cli.migrate.output import print_advice, print_report, problems
from hsm_kms.cli.migrate.progress import Progress
from hsm_kms.cli.streams import tell
from hsm_kms.clock import when
from hsm_kms.errors import CommandInterruptedError, HsmKmsError
from hsm_kms.etcd.text import count_of, printable
from hsm_kms.migrate import journal as journals
from hsm_kms.migrate.api import connected
from hsm_kms.migrate.kubectl import running_proxy
from hsm_kms.migrate.manifest import served_version
from hsm_kms.migrate.resources import find_resources, parse_resource
from hsm_kms.migrate.rewrite import Migration, Pace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from hsm_kms.migrate.api import Api
    from hsm_kms.migrate.journal import Journal
    from hsm_kms.migrate.kubectl import Kubectl
    from hsm_kms.migrate.resources import Resource
    from hsm_kms.migrate.rewrite import Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Say what is re-encrypted, and how.

    Args:
        kubectl: The kubectl to use.
        names: The resources, as the user named them.
        namespace: The only namespace, or None for all.
        rate: Most objects per second.
        file: Where the progress is kept, or None.
        dry_run: Send dry-run requests, so that the API server writes nothing.
        allow_changes: Accept that the cluster changes objects when they are written.
        output: "text" or "json".
        advice: Print what to do next.
    """

    kubectl: Kubectl
    names: tuple[str, ...]
    namespace: str | None = None
    rate: float = 20.0
    file: Path | None = None
    dry_run: bool = False
    allow_changes: bool = False
    output: str = "text"
    advice: bool = True

    def scope(self) -> journals.Scope:
        """Return what the progress file belongs to.

        Raises:
            KubectlError: kubectl cannot be used.
        """
        return journals.Scope(self.kubectl.server(), self.namespace, tuple(self.names))


def re_encrypt(request: Request) -> None:
    """Re-encrypt the objects, and print the result.

    Raises:
        HsmKmsError: An object was refused, is unreadable or was changed, or the API
            server cannot be used.
    """
    wanted = [parse_resource(name) for name in request.names]
    scope, file = request.scope(), request.file
    journal = journals.load(file, scope) if file else journals.begin(scope)
    with running_proxy(request.kubectl) as proxy, connected(proxy) as api:
        _check_namespace(api, request.namespace)
        found = find_resources(api, wanted)
        resources = list(found.resources.values())
        served = served_version(api)
        journal.skipped |= found.skipped
        pace = Pace(request.rate)
        migration = Migration(
            api,
            journal,
            save=partial(journals.save, file, journal) if file else _nothing,
            pace=pace,
            dry_run=request.dry_run,
        )
        with Progress(pace) as progress:
            _run(migration, resources, journal, file, progress)
    if file:
        file.unlink(missing_ok=True)
    print_report(journal, request.output, dry_run=request.dry_run)
    print_elsewhere(found.elsewhere)
    if request.advice:
        print_advice(journal, served)
    problems(journal, dry_run=request.dry_run, allow_changes=request.allow_changes)


def print_elsewhere(groups: Iterable[str]) -> None:
    """Print which API groups other API servers store, which do not re-encrypt."""
    if groups:
        tell(
            "not migrated, because other API servers store them: "
            f"{', '.join(f'*.{group}' for group in sorted(groups))}"
        )


def _check_namespace(api: Api, namespace: str | None) -> None:
    """Check that the namespace exists, unless the user may not see namespaces.

    Raises:
        HsmKmsError: The namespace does not exist.
    """
    if namespace is None:
        return
    answer = api.get(f"/api/v1/namespaces/{quote(namespace, safe='')}")
    if answer.code == http.HTTPStatus.NOT_FOUND:
        raise HsmKmsError(
            f"the namespace {printable(namespace)} does not exist",
            hint="`kubectl get namespaces` lists all namespaces",
        )


def _nothing() -> None:
    """Save nothing, because --resume was not given."""


def _run(
    migration: Migration,
    resources: Sequence[Resource],
    journal: Journal,
    file: Path | None,
    watcher: Watcher,
) -> None:
    if journal.at:
        tell(
            f"resuming the migration that began at {when(journal.started)}: "
            f"{count_of(journal.objects)} done, continuing with {journal.at}"
        )
    again = (
        "run the same command again to resume"
        if file
        else "run the command again, which does no harm; --resume FILE keeps progress"
    )
    try:
        migration.run(resources, watcher)
    except KeyboardInterrupt as interrupt:
        raise CommandInterruptedError(
            f"interrupted after {count_of(journal.objects)}", hint=again
        ) from interrupt
    except HsmKmsError as error:
        if not journal.objects:
            raise
        raise HsmKmsError(
            f"stopped after {count_of(journal.objects)}: {error}",
            hint=f"{error.hint}; then {again}" if error.hint else again,
        ) from None
