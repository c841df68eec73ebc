"""Provide `hsm-kms completion`, and answer the scripts that it prints.

A completion reads the command line that was typed so far and the definitions of the
commands, nothing else: no configuration, no socket and no token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import get_completion_class

from hsm_kms.cli import COMPLETE

if TYPE_CHECKING:
    from click.shell_completion import ShellComplete

PROGRAM: Final = "hsm-kms"
_SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options in your shell.

    \b
    bash  in ~/.local/share/bash-completion/completions/hsm-kms
    zsh   in _hsm-kms, in a directory of $fpath
    fish  in ~/.config/fish/completions/hsm-kms.fish

    Write the output to that file; the next shell that you start uses it. The Debian
    package has installed the scripts of all three shells.
    """  # noqa: D301 - click's mark is the character, not the two
    made = _completion_of(context.find_root().command, shell)
    # Its own source() starts bash to learn the version of that one.
    click.echo((made.source_template % made.source_vars()).strip())


def answer(group: click.Command, instruction: str) -> int:
    """Print what can follow on the command line that a script of ours passed.

    Args:
        group: The command line.
        instruction: Value of `COMPLETE`, such as "bash_complete".

    Returns:
        The exit code: 2 if the instruction is none of the scripts'.
    """
    shell, _, action = instruction.partition("_")
    if shell not in _SHELLS or action not in {"complete", "source"}:
        return 2
    made = _completion_of(group, shell)
    click.echo(made.complete() if action == "complete" else made.source())
    return 0


def _completion_of(group: click.Command, shell: str) -> ShellComplete:
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows each of _SHELLS
    return kind(group, {}, PROGRAM, COMPLETE)
