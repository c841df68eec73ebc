"""`hsm-kms etcd`: what the API server stored, counted and explained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli.etcd.conditions import Condition, conditions_option
from hsm_kms.cli.etcd.options import STDIN, etcd_options, open_source, progress_bar
from hsm_kms.cli.etcd.verify import verify
from hsm_kms.cli.options import output_option
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.etcd.text import printable

if TYPE_CHECKING:
    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.etcd.source import Item
    from hsm_kms.etcd.tally import Tally
    from hsm_kms.etcd.values import Stored

MAX_VALUE_BYTES: Final = 64 * 1024**2


@click.group("etcd")
def etcd_group() -> None:
    """Count, explain and verify what the API server stored in etcd."""


etcd_group.add_command(verify)


@etcd_group.command("scan")
@etcd_options
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME",
    help="Wanted encrypted, as secrets are; such as configmaps.  [may be repeated]",
)
@click.option("--all", "everything", is_flag=True, help="Name what is in clear too.")
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
    r"""Count stored objects by resource, provider and key; no key is needed.

    In clear first: Secrets, and any resource of which some object is encrypted.
    Other resources in clear come in one line.

    \b
    --fail-if key_id=KEY_ID   exit with 1 if any object is stored under that key,
                              whatever the suffix: may the key go?
    --fail-if unencrypted     exit with 1 if anything is in clear that should not be
    """
    from hsm_kms.cli.etcd import output as etcd_shown  # noqa: PLC0415 - loads protobuf
    from hsm_kms.etcd.tally import scan  # noqa: PLC0415

    watch = [each.key_id for each in conditions if each.key_id]
    with open_source(etcd) as source:
        with progress_bar(source, "scanning") as step:
            tally = scan(source, step, watch=watch, resources=resources)
        if output == "json":
            found = etcd_shown.tally_as_json(tally, source)
            found["fail_if"] = [each.as_json(tally) for each in conditions]
            click.echo(json.dumps(found))
        else:
            etcd_shown.print_tally(tally, source, everything=everything)
    _judge(conditions, tally, quiet=output == "json")


def _judge(conditions: tuple[Condition, ...], tally: Tally, *, quiet: bool) -> None:
    """Say what the answer to each condition is.

    Raises:
        HsmKmsError: One of them is met.
    """
    met = [each for each in conditions if each.count(tally)]
    well = [each for each in conditions if each not in met]
    if well and not quiet:
        click.echo()
        for each in well:
            click.echo(each.sentence(tally))
    if met:
        raise HsmKmsError(
            "; ".join(each.sentence(tally) for each in met),
            hint="`hsm-kms migrate` stores them again under the current key",
        )


@etcd_group.command("show")
@click.argument("name", metavar="[KEY]", required=False)
@click.option(
    "--value-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Explain this value, not one of etcd's; - is stdin.",
)
@etcd_options
@output_option
def show_command(
    name: str | None, *, value_file: Path | None, etcd: EtcdChoice, output: str
) -> None:
    """Explain one stored value; no key is needed, and nothing is decrypted.

    KEY is its key in etcd, such as /registry/secrets/default/NAME; a key that does
    not begin with a slash is taken to be below --prefix.
    """
    if (name is None) == (value_file is None):
        raise ConfigError(["give either a KEY or --value-file"])
    from hsm_kms.cli.etcd import output as etcd_shown  # noqa: PLC0415 - loads protobuf

    if value_file is not None:
        shown = etcd_shown.value_as_json(_of_file(value_file))
    else:
        item = _of_etcd(name or "", etcd)
        shown = etcd_shown.item_as_json(item, etcd.prefix)
    if output == "json":
        click.echo(json.dumps(shown))
    else:
        etcd_shown.print_value(shown)


def _of_etcd(name: str, choice: EtcdChoice) -> Item:
    if not name.startswith("/"):
        name = choice.prefix + name
    with open_source(choice) as source:
        found = source.get(name.encode("utf-8", "surrogateescape"))
        if found is None:
            raise HsmKmsError(
                f"there is no {printable(name)} in {source.name}",
                hint="a key is such as /registry/secrets/NAMESPACE/NAME",
            )
        return found


def _of_file(path: Path) -> Stored:
    """The value in a file; a newline that etcdctl put behind it is taken off."""
    from hsm_kms.etcd.values import explain  # noqa: PLC0415 - loads protobuf

    name = "stdin" if path == STDIN else str(path)
    try:
        with sys.stdin.buffer if path == STDIN else path.open("rb") as file:
            value = file.read(MAX_VALUE_BYTES + 1)
    except OSError as error:
        raise HsmKmsError(f"{name} cannot be read: {error.strerror}") from None
    if len(value) > MAX_VALUE_BYTES:
        raise HsmKmsError(f"{name} is longer than any value of etcd")
    stored = explain(value)
    if stored.problem and value.endswith(b"\n"):
        without = explain(value[:-1])
        return stored if without.problem else without
    return stored
