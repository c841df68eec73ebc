"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from hsm_kms.config import DEFAULT_PATH

config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_PATH,
    show_default=True,
    help="The configuration file.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Text for people, or JSON.",
)
