"""Provide `hsm-kms migrate`: have the API server re-encrypt stored objects."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from hsm_kms.cli.options import output_option
from hsm_kms.clock import when
from hsm_kms.errors import CommandInterruptedError, ConfigError, HsmKmsError
from hsm_kms.interrupts import raising_also_on
from hsm_kms.migrate import journal as journals
from hsm_kms.migrate.api import connected
from hsm_kms.migrate.journal import Outcome
from hsm_kms.migrate.kubectl import Kubectl, running_proxy
from hsm_kms.migrate.manifest import GROUP, manifests, served_version
from hsm_kms.migrate.resources import find_resources, parse_resource
from hsm_kms.migrate.rewrite import Migration, Pace, Watcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click._termui_impl import ProgressBar

    from hsm_kms.migrate.journal import Counts, Journal
    from hsm_kms.migrate.resources import Resource

_WORDS: Final = {
    Outcome.REWRITTEN: "rewritten",
    Outcome.UP_TO_DATE: "up to date already",
    Outcome.ACCEPTED: "would be accepted, nothing was written",
    Outcome.GONE: "deleted meanwhile",
    Outcome.REFUSED: "refused",
}


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
@click.option("-n", "--namespace", help="Only this namespace.")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The kubeconfig for kubectl, if not its default.",
)
@click.option("--context", help="The kubeconfig context for kubectl.")
@click.option(
    "--kubectl",
    "program",
    default="kubectl",
    show_default=True,
    metavar="PATH",
    help="The kubectl to use.",
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

    Exits with 1 if an object was refused, for example by an admission webhook.
    """
    if dry_run and file:
        raise ConfigError(["--dry-run and --resume exclude each other"])
    wanted = [parse_resource(name) for name in names]
    kubectl = Kubectl(program=program, kubeconfig=kubeconfig, context=context)
    scope = journals.Scope(kubectl.server(), namespace, tuple(names))
    journal = journals.load(file, scope) if file else journals.begin(scope)
    terminable = raising_also_on(signal.SIGTERM)  # so that kubectl is stopped, too
    with terminable, running_proxy(kubectl) as proxy, connected(proxy) as api:
        resources = find_resources(api, wanted)
        served = served_version(api)
        if explain:
            click.echo(_explained(resources, served), nl=False)
            return
        migration = Migration(
            api,
            journal,
            save=partial(journals.save, file, journal) if file else _nothing,
            pace=Pace(rate),
            dry_run=dry_run,
        )
        _run(migration, resources, journal, file)
    if file:
        file.unlink(missing_ok=True)
    _report(journal, output, dry_run=dry_run)
    _advise(journal, served)
    refused = journal.of(Outcome.REFUSED)
    if refused:
        raise HsmKmsError(
            f"{_objects(refused)} refused, and stored as before",
            hint="remove the cause of the refusals, and run this again",
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
    click.echo(
        "hint: pipe this into `kubectl create -f -`, then watch `kubectl get "
        "storageversionmigrations -w`; the kube-controller-manager needs the feature "
        "gate StorageVersionMigrator too",
        err=True,
    )
    return manifests(resources, version)


class _Bar(Watcher):
    """Show a progress bar for each resource on stderr, if that is a terminal."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._of: Resource | None = None
        self._bar: ProgressBar[Any] | None = None

    def page(self, resource: Resource, objects: int, left: int) -> None:
        if self._bar is None or self._of != resource:
            self._stack.close()
            bar = click.progressbar(
                length=objects + left,
                label=str(resource),
                file=sys.stderr,
                show_pos=True,
                hidden=not sys.stderr.isatty(),
            )
            self._bar = self._stack.enter_context(bar)
            self._of = resource
        self._bar.length = self._bar.pos + objects + left

    def done(self) -> None:
        if self._bar is not None:
            self._bar.update(1)


def _run(
    migration: Migration,
    resources: Sequence[Resource],
    journal: Journal,
    file: Path | None,
) -> None:
    if journal.at:
        click.echo(
            f"resuming the migration that began at {when(journal.started)}: "
            f"{_objects(journal.objects)} done, continuing with {journal.at}",
            err=True,
        )
    again = (
        "run the same command again to resume"
        if file
        else "run the command again, which does no harm; --resume FILE keeps progress"
    )
    try:
        with contextlib.ExitStack() as stack:
            migration.run(resources, _Bar(stack))
    except KeyboardInterrupt as interrupt:
        raise CommandInterruptedError(
            f"interrupted after {_objects(journal.objects)}", hint=again
        ) from interrupt
    except HsmKmsError as error:
        if not journal.objects:
            raise
        raise HsmKmsError(
            f"stopped after {_objects(journal.objects)}: {error}",
            hint=f"{error.hint}; then {again}" if error.hint else again,
        ) from None


def _report(journal: Journal, output: str, *, dry_run: bool) -> None:
    if output == "json":
        shown = {
            name: {"objects": counts.objects} | _shown(counts)
            for name, counts in journal.counts.items()
        }
        click.echo(json.dumps({"dry_run": dry_run, "resources": shown}))
        return
    some = {name: counts for name, counts in journal.counts.items() if counts.objects}
    for name, counts in (some or journal.counts).items():
        parts = [
            f"{counts.of(outcome):,} {words}"
            for outcome, words in _WORDS.items()
            if counts.of(outcome)
        ]
        summary = f"{name}: {_objects(counts.objects)}"
        click.echo(": ".join([summary, ", ".join(parts)] if parts else [summary]))
        for each in counts.refusals:
            click.echo(f"  {each.object}: {each.reason}")
        more = counts.of(Outcome.REFUSED) - len(counts.refusals)
        if more:
            click.echo(f"  and {more:,} more")


def _objects(count: int) -> str:
    return f"{count:,} object" if count == 1 else f"{count:,} objects"


def _shown(counts: Counts) -> dict[str, Any]:
    outcomes = {str(outcome): counts.of(outcome) for outcome in Outcome}
    return outcomes | {"refusals": msgspec.to_builtins(counts.refusals)}


def _advise(journal: Journal, served: str | None) -> None:
    if journal.of(Outcome.ACCEPTED):
        advice = ["run `hsm-kms etcd scan` to see which objects are out of date"]
    else:
        advice = ["run `hsm-kms etcd scan` to see what is stored now"]
    if journal.of(Outcome.UP_TO_DATE) and not journal.of(Outcome.REWRITTEN):
        advice.append(
            "nothing was out of date; an API server may use a new key a minute later"
        )
    if served:
        advice.append("this cluster can migrate on its own, see --explain")
    for each in advice:
        click.echo(f"hint: {each}", err=True)
