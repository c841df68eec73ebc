"""Define the command `hsm-kms migrate`."""

from __future__ import annotations

import http
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from hsm_kms.cli.migrate.output import print_advice, print_report, problems
from hsm_kms.cli.migrate.progress import Progress
from hsm_kms.cli.options import output_option
from hsm_kms.cli.streams import tell
from hsm_kms.clock import when
from hsm_kms.errors import CommandInterruptedError, ConfigError, HsmKmsError
from hsm_kms.etcd.text import count_of, printable
from hsm_kms.interrupts import raising_also_on
from hsm_kms.migrate import journal as journals
from hsm_kms.migrate.api import connected
from hsm_kms.migrate.kubectl import Kubectl, running_proxy
from hsm_kms.migrate.manifest import GROUP, manifests, served_version
from hsm_kms.migrate.resources import find_resources, parse_resource
from hsm_kms.migrate.rewrite import Migration, Pace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hsm_kms.migrate.api import Api
    from hsm_kms.migrate.journal import Journal
    from hsm_kms.migrate.resources import Resource
    from hsm_kms.migrate.rewrite import Watcher


@click.command()
@click.option(
    "--resource",
    "names",
    multiple=True,
    default=("secrets",),
    show_default=True,
    metavar="NAME",
    help="Resource to re-encrypt, as an EncryptionConfiguration names it: secrets, "
    "configmaps, deployments.apps, *.apps, *.* for everything. Can be repeated.",
)
@click.option(
    "-n",
    "--namespace",
    help="Only this namespace, and resources that are in no namespace.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The kubeconfig for kubectl, if not its default.",
)
@click.option("--context", help="The kubeconfig context for kubectl.")
@click.option(
    "--kubectl",
    "program",
    default="kubectl",
    show_default=True,
    metavar="COMMAND",
    help="The kubectl to use: a path, or a command such as 'k3s kubectl'.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="At most this many objects per second.",
)
@click.option(
    "--resume",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the progress in FILE, and resume from it if FILE exists. FILE is "
    "removed at the end.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Send dry-run requests: the API server writes nothing.",
)
@click.option(
    "--allow-changes",
    is_flag=True,
    help="Exit with 0 even if the cluster changed objects when they were written.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Print the StorageVersionMigration by which the cluster does this itself.",
)
@output_option
def migrate(  # noqa: PLR0913 - one per option
    *,
    names: tuple[str, ...],
    namespace: str | None,
    kubeconfig: Path | None,
    context: str | None,
    program: str,
    rate: float,
    file: Path | None,
    dry_run: bool,
    allow_changes: bool,
    explain: bool,
    output: str,
) -> None:
    """Re-encrypt existing objects.

    After a key rotation or a change of providers, an object keeps its old encryption
    until it is written again. This lists the objects and sends each one back to the
    API server unchanged. The API server writes an object only if its stored form
    would change, so that an up-to-date object stays as it is and running this twice
    does no harm.

    Uses your own kubectl and its credentials, which must allow get, list and update.
    Needs no configuration of hsm-kms and no token. Run `hsm-kms etcd scan` afterwards
    to see what is stored.

    A mutating webhook or policy may change an object that is sent back. Such objects
    are named, with the fields that changed; --dry-run names them before anything is
    written.

    Exits with 1 if an object was refused, cannot be read or was changed by the
    cluster, or if a resource was skipped. Everything else is re-encrypted.
    """
    if dry_run and file:
        raise ConfigError(["--dry-run and --resume exclude each other"])
    wanted = [parse_resource(name) for name in names]
    kubectl = Kubectl(program=program, kubeconfig=kubeconfig, context=context)
    scope = journals.Scope(kubectl.server(), namespace, tuple(names))
    journal = journals.load(file, scope) if file else journals.begin(scope)
    terminable = raising_also_on(signal.SIGTERM)  # so that kubectl is stopped, too
    with terminable, running_proxy(kubectl) as proxy, connected(proxy) as api:
        _check_namespace(api, namespace)
        found = find_resources(api, wanted)
        resources = list(found.resources.values())
        served = served_version(api)
        if explain:
            click.echo(_explained(resources, served), nl=False)
            _print_elsewhere(found.elsewhere)
            return
        journal.skipped |= found.skipped
        pace = Pace(rate)
        migration = Migration(
            api,
            journal,
            save=partial(journals.save, file, journal) if file else _nothing,
            pace=pace,
            dry_run=dry_run,
        )
        with Progress(pace) as progress:
            _run(migration, resources, journal, file, progress)
    if file:
        file.unlink(missing_ok=True)
    print_report(journal, output, dry_run=dry_run)
    _print_elsewhere(found.elsewhere)
    print_advice(journal, served)
    problems(journal, dry_run=dry_run, allow_changes=allow_changes)


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


def _print_elsewhere(groups: Iterable[str]) -> None:
    if groups:
        tell(
            "not migrated, because other API servers store them: "
            f"{', '.join(f'*.{group}' for group in sorted(groups))}"
        )


def _nothing() -> None:
    """Save nothing, because --resume was not given."""


def _explained(resources: Sequence[Resource], version: str | None) -> str:
    if version is None:
        raise HsmKmsError(
            f"this API server does not serve {GROUP}",
            hint="from Kubernetes 1.35 on, enable the feature gate "
            "StorageVersionMigrator and --runtime-config="
            f"{GROUP}/v1beta1=true; or run this without --explain",
        )
    tell(
        "hint: pipe this into `kubectl create -f -`, then watch `kubectl get "
        "storageversionmigrations -w`; the kube-controller-manager needs the feature "
        "gate StorageVersionMigrator too"
    )
    return manifests(resources, version)


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
