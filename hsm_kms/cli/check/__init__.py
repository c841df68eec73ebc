"""Provide `hsm-kms check`: one line for each requirement, with cause and cure.

`node` tries what `serve` does at its start, and changes nothing on the node. `token`
logs in under the rules of the server, which records each try of an unproven PIN in the
state directory; nothing else is written. A step that failed keeps no other step from
running, except those that need it: they are skipped, and say so.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING

import click

from hsm_kms.cli.check import node, token
from hsm_kms.cli.check.encryption_config import EncryptionFile, file_option
from hsm_kms.cli.check.tradeoff import tradeoff
from hsm_kms.cli.options import config_option, output_option
from hsm_kms.cli.report import Report, because
from hsm_kms.cli.waiting import until_well, wait_option
from hsm_kms.config import load as configuration

if TYPE_CHECKING:
    from pathlib import Path

    from hsm_kms.config.schema import Config


@click.command()
@config_option
@click.option("--offline", is_flag=True, help="Do not use the token.")
@click.option(
    "--wrapping",
    is_flag=True,
    help="Print the table of wrapping modes, also if a check fails.",
)
@file_option
@wait_option
@output_option
def check(
    path: Path,
    *,
    offline: bool,
    wrapping: bool,
    encryption: Path | None,
    seconds: float,
    output: str,
) -> None:
    """Check the configuration, module, token, login, keys, policy and mechanism.

    Tries what `serve` does when it starts, without creating or taking anything. Logs
    in under the same rules as the server, then encrypts and decrypts once with the
    current key. A check that cannot run because another one failed is skipped. If all
    is well, ends with a table of what the configured wrapping mode gives up; JSON has
    no table. Exits with 1 if any check fails.
    """
    config = configuration.load(path)
    # With --wait only the last attempt counts.
    shown = output == "text" and not seconds
    file = EncryptionFile(encryption) if encryption is not None else None
    attempt = partial(_attempt, config, path, file, offline=offline, shown=shown)
    report = until_well(attempt, seconds)
    if output == "json":
        click.echo(json.dumps(report.as_json()))
    else:
        report.show()
        _conclude(report, config, wrapping=wrapping)
    sys.exit(1 if report.failures else 0)


def _attempt(
    config: Config,
    path: Path,
    file: EncryptionFile | None,
    *,
    offline: bool,
    shown: bool,
) -> Report:
    report = Report(shown=shown)
    report.ok("configuration", f"configuration {path}")
    node.check_user(report, config)
    wrong_user = bool(report.failures)
    if wrong_user:
        # Another user sees other permissions: whatever was found would mislead.
        report.skip((*node.STEPS, *token.steps(config)), because("user"))
    else:
        node.check_node(report, config, path)
    if file is not None:
        file.check(report, config)
    if wrong_user:
        return report
    if offline:
        report.skip(token.steps(config), "--offline")
    else:
        asyncio.run(token.check_token(report, config))
    return report


def _conclude(report: Report, config: Config, *, wrapping: bool) -> None:
    if wrapping or not report.failures:
        for line in tradeoff(config, _width()):
            click.echo(line)
    report.sum_up()


def _width() -> int:
    """Return the width of the terminal, or that of the whole table in a pipe."""
    return max(40, shutil.get_terminal_size((120, 24)).columns)
