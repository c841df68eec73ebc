"""Provide `hsm-kms config`: show the effective configuration, and its schema."""

from __future__ import annotations

import json
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
    """Show the configuration, and which settings there are."""


@config_group.command("show")
@config_option
def show(path: Path) -> None:
    """Print the effective configuration without anything that may be secret."""
    shown = yaml.safe_dump(
        effective(load(path)), sort_keys=False, allow_unicode=is_utf8()
    )
    click.echo(shown, nl=False)


@config_group.command("schema")
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors and tools."""
    from hsm_kms.config.json_schema import json_schema  # noqa: PLC0415 - imports much

    click.echo(json.dumps(json_schema(), indent=2))
