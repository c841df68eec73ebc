"""Choose where a decrypted object goes: to stdout, or to a new file."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hsm_kms.cli.ask import confirm, require_terminal
from hsm_kms.errors import ConfigError, HsmKmsError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Describe where a decrypted object goes.

    Args:
        reveal: Print it without asking.
        file: The file to write instead; None for stdout.
    """

    reveal: bool
    file: Path | None

    def __str__(self) -> str:
        """Return the destination for the log."""
        return "stdout" if self.file is None else str(self.file)

    def ask(self, key: str) -> None:
        """Ask whether to print an object, unless the command line says where it goes.

        Args:
            key: The key of the object in etcd, as text that is safe to print.

        Raises:
            ConfigError: There is no terminal on which to ask.
        """
        if not self.reveal and self.file is None:
            require_terminal("give --reveal or --output-file")
            confirm(f"print what is in {key}, unencrypted?", yes=False)

    def give(self, data: bytes) -> None:
        """Print an object as JSON in ASCII, or write it unchanged to the file.

        Raises:
            HsmKmsError: The object cannot be shown as JSON, or the file not be written.
        """
        if self.file is not None:
            _write(data, self.file)
            click.echo(f"wrote {len(data):,} bytes to {self.file}")
            return
        from hsm_kms.etcd.readable import as_json  # noqa: PLC0415 - for --help

        click.echo(as_json(data))


def destination_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as `to: Destination`."""

    @functools.wraps(command)
    def with_destination(
        *args: Any, reveal: bool, output_file: Path | None, **more: Any
    ) -> Any:
        if reveal and output_file:
            raise ConfigError(["--reveal and --output-file exclude each other"])
        to = Destination(reveal=reveal, file=output_file)
        return command(*args, to=to, **more)

    reveal = click.option(
        "--reveal", is_flag=True, help="Print the object without asking."
    )
    output_file = click.option(
        "--output-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write the object, as it was stored, to this new file of mode 0600.",
    )
    return reveal(output_file(with_destination))


def _write(data: bytes, path: Path) -> None:
    """Write a new file that only its owner can read; remove it if that fails.

    Raises:
        HsmKmsError: The file exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise HsmKmsError(f"{path} cannot be created: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except BaseException as error:
        with contextlib.suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise HsmKmsError(f"{path} cannot be written: {error.strerror}") from None
        raise
