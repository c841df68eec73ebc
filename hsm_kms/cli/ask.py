"""Ask on the terminal: for a secret, or whether to go on."""

from __future__ import annotations

import os
import sys
import warnings

import click

from hsm_kms.errors import ConfigError, HsmKmsError
from hsm_kms.interrupts import interruptible


def ask_secret(question: str) -> str:
    """Ask on the terminal, without echo; on stderr and stdin if there is no terminal.

    Args:
        question: What is asked for.

    Raises:
        HsmKmsError: The answer is not text.
    """
    with interruptible():
        try:
            answer = _hidden(question) if _has_terminal() else _read_line(question)
            answer.encode()
        except UnicodeError:
            raise HsmKmsError(f"{question}: the answer is not UTF-8 text") from None
        except EOFError:
            raise click.Abort from None
    return answer


def _has_terminal() -> bool:
    """Return True if there is a terminal, on which the answer must not be seen."""
    if sys.stdin.isatty():
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _hidden(question: str) -> str:
    # If the echo cannot be turned off, getpass would quote a line of its own source.
    with warnings.catch_warnings(action="ignore"):
        answer: str = click.prompt(question, hide_input=True, err=True)
    return answer


def _read_line(question: str) -> str:
    """Return a line of stdin.

    Raises:
        EOFError: stdin has ended.
    """
    click.echo(f"{question}: ", nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    click.echo(err=True)
    return line.removesuffix("\n")


def require_terminal(instead: str) -> None:
    """Refuse to go on if stdin is no terminal on which to ask.

    Args:
        instead: What to give on the command line instead.

    Raises:
        ConfigError: stdin is no terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError([f"stdin is not a terminal, so {instead}"])


def confirm(question: str, *, yes: bool) -> None:
    """Ask a question unless `yes` is True; any answer but yes ends the command."""
    if not yes:
        with interruptible():
            click.confirm(question, abort=True, err=True)
