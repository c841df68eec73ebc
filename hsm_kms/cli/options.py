"""Define the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.config.formats import KEY_ID, parse_go_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_PATH: Final = Path("/etc/hsm-kms/config.yaml")

config_option = click.option(
    "--config",
    "path",
    # Whoever opens the file says which user may not.
    type=click.Path(path_type=Path, dir_okay=False, readable=False),
    default=DEFAULT_PATH,
    show_default=True,
    help="The configuration file.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Print text, or JSON for scripts.",
)


class _SecondsType(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the duration in seconds."""
        if isinstance(value, float):
            return value
        try:
            return parse_go_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


SECONDS_TYPE: Final = _SecondsType()


class _KeyIdType(click.ParamType[str]):
    name = "key_id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the key_id unchanged."""
        if not KEY_ID.fullmatch(value):
            self.fail(f"{value!r} is not a key_id as `keys list` shows it", param, ctx)
        return str(value)


KEY_ID_TYPE: Final = _KeyIdType()


def with_options(
    command: Callable[..., Any], options: Sequence[Callable[..., Any]]
) -> Callable[..., Any]:
    """Add options to a command.

    Args:
        command: The command, which gets their values.
        options: What `click.option` returned, in the order of the help.
    """
    for option in reversed(options):
        command = option(command)
    return command


def positive(_: click.Context, __: click.Parameter, seconds: float) -> float:
    """Refuse a duration of 0; this is the callback of an option."""
    if seconds <= 0:
        raise click.BadParameter("must be more than 0s")
    return seconds
