"""Provide `hsm-kms check`: one line for each requirement, with cause and cure.

`node` tries what `serve` does at its start, and changes nothing on the node. `token`
logs in under the rules of the server, which records each try of an unproven PIN in the
state directory; nothing else is written.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import TYPE_CHECKING

import click

from hsm_kms.cli.check.node import check_node
from hsm_kms.cli.check.report import Report
from hsm_kms.cli.check.token import check_token
from hsm_kms.cli.check.tradeoff import tradeoff
from hsm_kms.cli.options import config_option
from hsm_kms.config import load as configuration

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@config_option
@click.option("--offline", is_flag=True, help="Do not use the token.")
@click.option(
    "--wrapping",
    is_flag=True,
    help="Print the table of wrapping modes, also if a check fails.",
)
def check(path: Path, *, offline: bool, wrapping: bool) -> None:
    """Check the configuration, module, token, login, keys, policy and mechanism.

    Tries what `serve` does when it starts, without creating or taking anything. Logs
    in under the same rules as the server, then encrypts and decrypts once with the
    current key. If all is well, ends with a table of what the configured wrapping mode
    gives up. Exits with 1 if any check fails.
    """
    config = configuration.load(path)
    report = Report()
    report.ok(f"configuration {path}")
    safe = check_node(report, config, path)
    if safe and not offline:
        asyncio.run(check_token(report, config))
    if wrapping or not report.failed:
        for line in tradeoff(config, _width()):
            click.echo(line)
    report.sum_up(skipped="" if safe or offline else "the token was not checked")
    sys.exit(1 if report.failed else 0)


def _width() -> int:
    """Return the width of the terminal, or that of the whole table in a pipe."""
    return max(40, shutil.get_terminal_size((120, 24)).columns)
