"""Ask on the terminal: for a secret, or whether to go on."""

from __future__ import annotations

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
    # Without a terminal, getpass would warn on stderr with a line of its own source.
    with warnings.catch_warnings(action="ignore"), interruptible():
        try:
            answer: str = click.prompt(question, hide_input=True, err=True)
            answer.encode()
        except UnicodeError:
            raise HsmKmsError(f"{question}: the answer is not UTF-8 text") from None
    return answer


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
