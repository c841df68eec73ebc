"""Provide `hsm-kms init`: ask how a node is, and write its files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.init.choices import FORMS, Choices
from hsm_kms.cli.init.files import (
    PIN_FILE,
    SOCKET,
    TOKEN_LABEL,
    config_as_given,
    needed,
    notes,
    text_of,
)
from hsm_kms.errors import HsmKmsError
from hsm_kms.interrupts import interruptible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.cli.init.files import File

_CLUSTERS: Final = click.Choice(list(FORMS))
_FORMS: Final = click.Choice(sorted(set(FORMS.values())))


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--cluster", type=_CLUSTERS, help="What made the cluster, or none.")
@click.option(
    "--run-as",
    "form",
    type=_FORMS,
    help="How hsm-kms runs.  [default: static-pod for kubeadm and rke2, else systemd]",
)
@click.option("--module", help="The PKCS#11 module on the node.")
@click.option("--token-label", help=f"Label of the token.  [default: {TOKEN_LABEL}]")
@click.option(
    "--pin-file",
    help=f"Where the PIN will be; it is not written.  [default: {PIN_FILE}]",
)
@click.option("--socket", help=f"The KMS socket.  [default: {SOCKET}]")
@click.option(
    "--scope",
    help="Name of the cluster, bound into every wrapped key: the same on all nodes, "
    "permanently.  [default: no name]",
)
@click.option(
    "--shared/--not-shared",
    default=None,
    help="All nodes use this token, or tokens that replicate keys.  [default: shared]",
)
@click.option(
    "--yes",
    is_flag=True,
    help="Ask nothing; use the defaults. --cluster and --module have none.",
)
def init(directory: Path, *, yes: bool, **given: Any) -> None:
    """Write configuration and manifests for a node into DIRECTORY.

    Asks for what no option gives. The files are those of manifests/ with your values:
    the configuration, the static pod or the systemd service with its directories, the
    EncryptionConfigurations of each step, and the lines for the API server. Nothing is
    installed, no existing file is changed, and the PIN is neither asked for nor
    written.
    """
    choices = _asked(given, yes=yes)
    choices.require_valid(config_as_given(choices))
    made = [(file, text_of(file, choices)) for file in needed(choices)]
    _require_new([directory / file.name for file, _ in made])
    for file, text in made:
        _write(directory / file.name, text)
    _show(directory, [file for file, _ in made], choices)


def _asked(given: dict[str, Any], *, yes: bool) -> Choices:
    """Return the choices: options, answers, and with `yes` the defaults."""

    def value(name: str, question: str, default: Any = None, kind: Any = str) -> Any:
        if given[name] is not None:
            return given[name]
        if not yes:
            with interruptible():
                return click.prompt(question, default=default, type=kind, err=True)
        if default is None:
            raise click.UsageError(f"with --yes, --{name} must be given")
        return kind(default)

    cluster = value("cluster", "What made the cluster", kind=_CLUSTERS)
    return Choices(
        cluster=cluster,
        form=value("form", "How hsm-kms runs", FORMS[cluster], _FORMS),
        module=value("module", "PKCS#11 module on the node"),
        token_label=value("token_label", "Label of the token", TOKEN_LABEL),
        pin_file=value("pin_file", "File where the PIN will be", PIN_FILE),
        # As in the EncryptionConfiguration, a URL is taken, too.
        socket=re.sub("^unix://(?=/)", "", value("socket", "KMS socket", SOCKET)),
        scope=value("scope", "Name of the cluster, permanently", ""),
        shared=value(
            "shared",
            "All nodes use this token, or tokens that replicate keys",
            "yes",
            click.BOOL,
        ),
    )


def _require_new(paths: Sequence[Path]) -> None:
    """Refuse to go on if one of the files exists, before anything is written."""
    for path in paths:
        if os.path.lexists(path):
            raise HsmKmsError(
                f"{path} exists, so nothing was written",
                hint="choose a new directory, or remove the files of an earlier run",
            )


def _write(path: Path, text: str) -> None:
    """Create a file that every user may read: it holds no secret."""
    try:
        _make_directory(path.parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o644)  # whatever the umask is
            file.write(text)
    except OSError as error:
        raise HsmKmsError(f"cannot write {path}: {error.strerror}") from None


def _make_directory(path: Path) -> None:
    if not path.exists():
        _make_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)


def _show(directory: Path, files: Sequence[File], choices: Choices) -> None:
    width = max(len(file.name) for file in files)
    click.echo(f"wrote to {directory}, in the order in which the files are used:")
    for file in files:
        click.echo(f"  {file.name:{width}}  {file.purpose}")
    for note in notes(choices):
        click.echo(f"{note}.")
