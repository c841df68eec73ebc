"""Ask for a secret."""

from __future__ import annotations

import warnings

import click

from hsm_kms.errors import HsmKmsError
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
