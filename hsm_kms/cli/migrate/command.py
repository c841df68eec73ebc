"""Define the command `hsm-kms migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hsm_kms.cli.migrate.options import (
    DEFAULT_RESOURCES,
    allow_changes_option,
    kubectl_options,
    rate_option,
    resource_option,
)
from hsm_kms.cli.migrate.run import Request, print_elsewhere, re_encrypt
from hsm_kms.cli.options import output_option
from hsm_kms.cli.streams import tell
from hsm_kms.errors import ConfigError
from hsm_kms.migrate.api import connected
from hsm_kms.migrate.kubectl import running_proxy
from hsm_kms.migrate.manifest import manifests, require_version
from hsm_kms.migrate.resources import find_resources, parse_resource

if TYPE_CHECKING:
    from hsm_kms.migrate.kubectl import Kubectl


@click.command()
@resource_option(DEFAULT_RESOURCES)
@click.option(
    "-n",
    "--namespace",
    help="Only this namespace, and resources that are in no namespace.",
)
@kubectl_options
@rate_option
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
@allow_changes_option
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
    kubectl: Kubectl,
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
    if explain:
        _explain(kubectl, names)
        return
    re_encrypt(
        Request(
            kubectl=kubectl,
            names=names,
            namespace=namespace,
            rate=rate,
            file=file,
            dry_run=dry_run,
            allow_changes=allow_changes,
            output=output,
        )
    )


def _explain(kubectl: Kubectl, names: tuple[str, ...]) -> None:
    wanted = [parse_resource(name) for name in names]
    kubectl.server()  # which says what is wrong with the kubeconfig
    with running_proxy(kubectl) as proxy, connected(proxy) as api:
        found = find_resources(api, wanted)
        version = require_version(api)
    tell(
        "hint: pipe this into `kubectl create -f -`, then watch `kubectl get "
        "storageversionmigrations -w`; the kube-controller-manager needs the feature "
        "gate StorageVersionMigrator too"
    )
    click.echo(manifests(list(found.resources.values()), version), nl=False)
    print_elsewhere(found.elsewhere)
