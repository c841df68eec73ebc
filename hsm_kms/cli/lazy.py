"""Import a command when it is used, so that no command pays for the others."""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from hsm_kms import interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from click.shell_completion import CompletionItem


class Lazy(NamedTuple):
    """Say where a command is defined, and what its group's help says about it.

    Attributes:
        source: "module:attribute" of the command.
        help: First line of the command's own help, so that the help of the group
            imports no command. A test compares the two.
    """

    source: str
    help: str


class LazyGroup(click.Group):
    """Import a command of the group only when it is run or its help is printed.

    Args:
        lazy: The commands by name.
        attrs: The arguments of `click.Group`.
    """

    def __init__(self, *, lazy: Mapping[str, Lazy], **attrs: Any) -> None:
        super().__init__(commands=_Commands(lazy), **attrs)
        self.lazy = lazy

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.lazy[name].help) for name in self.list_commands(ctx)]
            )

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[CompletionItem]:
        """Return the commands and options that complete a word; import no command."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - seldom

        commands = [
            CompletionItem(name, help=self.lazy[name].help)
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]


class _Commands(MutableMapping[str, click.Command]):
    """Map names to commands; reading a command imports its module."""

    def __init__(self, lazy: Mapping[str, Lazy]) -> None:
        self._lazy = lazy

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = self._lazy[name].source.partition(":")
        with interrupts.exiting():
            command: click.Command = getattr(import_module(module), attribute)
        return command

    def __contains__(self, name: object) -> bool:
        return name in self._lazy

    def __iter__(self) -> Iterator[str]:
        return iter(self._lazy)

    def __len__(self) -> int:
        return len(self._lazy)

    def __setitem__(self, name: str, command: click.Command) -> NoReturn:
        raise TypeError("a lazy group has the commands of its table only")

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError("a lazy group has the commands of its table only")
