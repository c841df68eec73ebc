"""Define the options that all `keys` commands share, and how they print and ask."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from hsm_kms.cli.one_worker import login_options
from hsm_kms.cli.options import KEY_ID_TYPE, config_option, output_option
from hsm_kms.config import load as configuration
from hsm_kms.errors import HsmKmsError
from hsm_kms.interrupts import interruptible

if TYPE_CHECKING:
    from collections.abc import Callable

    from hsm_kms.cli.one_worker import LoginChoice
    from hsm_kms.config.schema import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Hold the shared options of one command.

    Args:
        config: The configuration.
        login: How the command logs in, if not as the server does.
        as_json: True if results are printed as JSON.
    """

    config: Config
    login: LoginChoice
    as_json: bool

    def show(self, result: Any, *lines: str) -> None:
        """Print the result as JSON with `-o json`, otherwise print the lines."""
        for line in [json.dumps(result)] if self.as_json else lines:
            click.echo(line)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command, which gets them as `given: Given`."""

    @functools.wraps(command)
    def with_given(**options: Any) -> Any:
        config = configuration.load(options.pop("path"))
        as_json = options.pop("output") == "json"
        given = Given(config=config, login=options.pop("login"), as_json=as_json)
        return command(given=given, **options)

    made: Callable[..., Any] = with_given
    return config_option(login_options(output_option(made)))


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


key_id_argument = click.argument("key_id", metavar="KEY_ID", type=KEY_ID_TYPE)
confirm_option = click.option(
    "--confirm",
    "typed",
    type=KEY_ID_TYPE,
    metavar="KEY_ID",
    help="The key_id once more, instead of typing it when asked.",
)


def confirm_key(key_id: str, typed: str | None) -> None:
    """Require the key_id a second time.

    Args:
        key_id: The key_id that the command was given.
        typed: The key_id of `--confirm`; None to ask for it.

    Raises:
        HsmKmsError: The two key_ids differ.
    """
    if typed is None:
        with interruptible():
            typed = click.prompt("type the key_id to destroy it", err=True)
    if str(typed).strip() != key_id:
        raise HsmKmsError("the two key_ids differ; nothing was destroyed")
