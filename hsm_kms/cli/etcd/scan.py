"""Provide `hsm-kms etcd scan`: count what the API server stored."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli.etcd import output as etcd_shown
from hsm_kms.cli.etcd.conditions import Condition, conditions_option
from hsm_kms.cli.etcd.etcdctl import EtcdCommand
from hsm_kms.cli.etcd.options import etcd_options, open_source, reading
from hsm_kms.cli.etcd.progress import progress_bar
from hsm_kms.cli.options import output_option
from hsm_kms.cli.streams import tell
from hsm_kms.errors import HsmKmsError
from hsm_kms.etcd.tally import scan

if TYPE_CHECKING:
    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.etcd.tally import Tally


HELP: Final = """\
Count stored objects by resource, provider and key; needs no key.

Lists unencrypted objects first: Secrets, and every resource of which some object
is encrypted. Sums up the other unencrypted resources in one line.

\b
--fail-if key_id=KEY_ID   exit with 1 if any object is stored under that key,
                          whatever its suffix: is it safe to delete the key?
--fail-if unencrypted     exit with 1 if any object is unencrypted that should
                          not be
"""

_RESOURCE: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")


def _resources(
    _: click.Context, __: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    # Under a name that no resource has, nothing would be found unencrypted.
    for name in names:
        if not _RESOURCE.fullmatch(name):
            raise click.BadParameter(
                f"{name!r} is not the name of one resource, such as configmaps or "
                "deployments.apps"
            )
    return names


@click.command("scan", cls=EtcdCommand, help=HELP)
@etcd_options
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME",
    callback=_resources,
    help="Another resource that must be encrypted, as secrets must; such as "
    "configmaps or deployments.apps.  [may be repeated]",
)
@click.option(
    "--all", "everything", is_flag=True, help="List unencrypted resources too."
)
@conditions_option
@output_option
def scan_command(
    etcd: EtcdChoice,
    *,
    resources: tuple[str, ...],
    everything: bool,
    conditions: tuple[Condition, ...],
    output: str,
) -> None:
    """Scan, print the tables, and judge the conditions."""
    watch = [each.key_id for each in conditions if each.key_id]
    with reading(etcd), open_source(etcd) as source:
        with progress_bar(source, "scanning") as step:
            tally = scan(source, step, watch=watch, resources=resources)
        if output == "json":
            found = etcd_shown.tally_as_json(tally, source)
            found["fail_if"] = [each.as_json(tally) for each in conditions]
            click.echo(json.dumps(found))
        else:
            etcd_shown.print_tally(tally, source, everything=everything)
    for name in tally.without_objects():
        tell(f"no object of {name} was found: is that its name, in the plural?")
    _judge(conditions, tally, quiet=output == "json")


def _judge(conditions: tuple[Condition, ...], tally: Tally, *, quiet: bool) -> None:
    """Print the result for each condition that is not met.

    Raises:
        HsmKmsError: A condition is met.
    """
    met = [each for each in conditions if each.count(tally)]
    well = [each for each in conditions if each not in met]
    if well and not quiet:
        click.echo()
        for each in well:
            click.echo(each.message(tally))
    if met:
        raise HsmKmsError(
            "; ".join(each.message(tally) for each in met),
            hint="; ".join(each.cure(tally) for each in met),
        )
