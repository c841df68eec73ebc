"""Write docs/command-line.md from the commands themselves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click

from hsm_kms.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERBATIM: Final = "\b\n"  # click's mark of a paragraph that it does not wrap
_SHARED: Final = {"--help", "--version"}
_EXTRA: Final = re.compile(r"\s*\[([^\[\]]+)\]$")  # such as [default: 2s; x>0]


def reference() -> str:
    """Return the help of every command as Markdown, in the order of `--help`."""
    return "\n\n".join(_section(command) for command in _commands(cli, None))


def _commands(
    command: click.Command, parent: click.Context | None
) -> Iterator[click.Context]:
    name = "hsm-kms" if parent is None else command.name
    context = click.Context(command, info_name=name, parent=parent)
    if not isinstance(command, click.Group):
        yield context
        return
    for each in command.list_commands(context):
        if found := command.get_command(context, each):
            yield from _commands(found, context)


def _section(context: click.Context) -> str:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## `{context.command_path}`", f"```text\n{usage}\n```"]
    parts += _paragraphs(command.help or "")
    if options := list(_options(context)):
        parts.append("\n".join(["| option | meaning |", "|---|---|", *options]))
    return "\n\n".join(parts)


def _paragraphs(text: str) -> Iterator[str]:
    for each in re.split(r"\n\s*\n", _unindented(text)):
        if each.startswith(_VERBATIM):
            yield f"```text\n{each.removeprefix(_VERBATIM)}\n```"
        else:
            yield _plain(" ".join(each.split()))


def _unindented(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _options(context: click.Context) -> Iterator[str]:
    for each in context.command.get_params(context):
        if _SHARED.intersection(each.opts):
            continue
        if isinstance(each, click.Option) and (record := each.get_help_record(context)):
            names, meaning = record
            extra = _EXTRA.search(meaning)
            words = [_plain(_EXTRA.sub("", meaning))]
            words += map(_note, extra[1].split("; ") if extra else [])
            yield f"| `{names.replace('|', chr(92) + '|')}` | {' '.join(words)} |"


def _note(extra: str) -> str:
    name, _, value = extra.partition(": ")
    if name == "default":
        return f"Default: `{value}`."
    return f"{extra[:1].upper()}{extra[1:]}." if " " in extra else f"`{extra}`."


def _plain(text: str) -> str:
    """Return text in which Markdown finds nothing but spans of code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part.replace("|", r"\|") if part.startswith("`") else _escaped(part)
        for part in parts
    )


def _escaped(text: str) -> str:
    return re.sub(r"([*_|\[\]<>\\])", r"\\\1", text)
