"""Provide `hsm-kms etcd show`: explain one stored value."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli.etcd import output as etcd_shown
from hsm_kms.cli.etcd.etcdctl import EtcdCommand
from hsm_kms.cli.etcd.one_item import read_item
from hsm_kms.cli.etcd.options import STDIN, etcd_options
from hsm_kms.cli.options import output_option
from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.etcd.values import explain

if TYPE_CHECKING:
    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.etcd.values import Stored

MAX_VALUE_BYTES: Final = 64 * 1024**2


@click.command("show", cls=EtcdCommand)
@click.argument("name", metavar="[KEY]", required=False)
@click.option(
    "--value-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Explain the value in this file instead; - is stdin.",
)
@etcd_options
@output_option
def show_command(
    name: str | None, *, value_file: Path | None, etcd: EtcdChoice, output: str
) -> None:
    """Explain one stored value; needs no key, and decrypts nothing.

    KEY is the key in etcd, such as /registry/secrets/default/NAME. A key that does
    not begin with a slash is relative to --prefix.
    """
    if (name is None) == (value_file is None):
        raise ConfigError(["give either a KEY or --value-file"])
    if value_file is not None:
        shown = etcd_shown.value_as_json(_of_file(value_file))
    else:
        item = read_item(name or "", etcd)
        shown = etcd_shown.item_as_json(item, etcd.prefix)
    if output == "json":
        click.echo(json.dumps(shown))
    else:
        etcd_shown.print_value(shown)


# Of every value: encrypted or Protobuf, or the JSON of a custom resource.
_BEGINNINGS: Final = (b"k8s:enc:", b"k8s\0", b"{")


def _of_file(path: Path) -> Stored:
    """Explain the value in a file, without the newline that etcdctl appends."""
    name = "stdin" if path == STDIN else str(path)
    try:
        with sys.stdin.buffer if path == STDIN else path.open("rb") as file:
            value = file.read(MAX_VALUE_BYTES + 1)
    except OSError as error:
        raise HsmKmsError(f"{name} cannot be read: {error.strerror}") from None
    if len(value) > MAX_VALUE_BYTES:
        raise HsmKmsError(f"{name} is longer than any value of etcd")
    _require_value(name, value)
    stored = explain(value)
    if stored.problem and value.endswith(b"\n"):
        without = explain(value[:-1])
        return stored if without.problem else without
    return stored


def _require_value(name: str, content: bytes) -> None:
    """Refuse what etcdctl prints if there is no value, or beside the value.

    It would look like a value that is not encrypted.
    """
    if not content.strip():
        raise HsmKmsError(
            f"{name} is empty: there is no value",
            hint="etcdctl prints nothing if it finds no such key",
        )
    if content.startswith(b'{"header":'):
        raise HsmKmsError(
            f"{name} is what `etcdctl -w json` prints, and not one value",
            hint="give it as --from-json, with the KEY",
        )
    first, newline, _ = content.partition(b"\n")
    if first.startswith(b"/") and newline:
        raise HsmKmsError(
            f"{name} begins with a key, and not with a value",
            hint="use `etcdctl get KEY --print-value-only`",
        )
    if not content.startswith(_BEGINNINGS):
        raise HsmKmsError(
            f"{name} is no value of an API server, as it is stored",
            hint="give the bytes of `etcdctl get KEY --print-value-only`, not encoded",
        )
