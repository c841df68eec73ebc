"""Provide `hsm-kms config`: show the effective configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import yaml

from hsm_kms.cli.options import config_option
from hsm_kms.cli.streams import is_utf8
from hsm_kms.config.load import effective, load

if TYPE_CHECKING:
    from pathlib import Path


@click.group("config")
def config_group() -> None:
    """Show the configuration."""


@config_group.command("show")
@config_option
def show(path: Path) -> None:
    """Print the effective configuration without anything that may be secret."""
    shown = yaml.safe_dump(
        effective(load(path)), sort_keys=False, allow_unicode=is_utf8()
    )
    click.echo(shown, nl=False)
