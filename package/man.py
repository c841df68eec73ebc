"""Write the manual pages: one for each command, from the command's own help.

Usage: python -m package.man DIRECTORY. With SOURCE_DATE_EPOCH set, the pages have that
date. They are written in the macros of man(7), which man-db and mandoc read.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from hsm_kms import __version__, healthcheck
from hsm_kms.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROGRAM: Final = "hsm-kms"
_URL_OF_PAGES: Final = "/usr/share/doc/hsm-kms"
_ESCAPED: Final = {
    "\\": "\\e",
    "-": "\\-",
    "'": "\\(aq",
    "^": "\\(ha",
    "~": "\\(ti",
}
_EXIT_STATUS: Final = {
    "0": "Success.",
    "1": "A check failed, the token refused, or the output could not be written.",
    "2": "The command line or the configuration is wrong.",
    "130": "The command was interrupted by Ctrl-C.",
    "141": "Nobody reads the output any more.",
}


def pages() -> Iterator[tuple[str, str]]:
    """Yield name and text of every page."""
    root = click.Context(cli, info_name=PROGRAM, **cli.context_settings)
    for context in _contexts(root):
        yield f"{_name(context)}.1", "\n".join(_page(context)) + "\n"
    yield f"{PROGRAM}-healthcheck.1", "\n".join(_healthcheck_page()) + "\n"


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """Yield the context of a command, and of all below it."""
    yield context
    for inner in _inner(context):
        yield from _contexts(inner)


def _inner(context: click.Context) -> list[click.Context]:
    group = context.command
    if not isinstance(group, click.Group):
        return []
    commands = {name: group.get_command(context, name) for name in group.commands}
    return [
        click.Context(command, parent=context, info_name=name)
        for name, command in sorted(commands.items())
        if command and not command.hidden
    ]


def _name(context: click.Context) -> str:
    return _path(context).replace(" ", "-")


def _path(context: click.Context) -> str:
    """Return the command as it is typed, without arguments of the groups above."""
    above = f"{_path(context.parent)} " if context.parent else ""
    return f"{above}{context.info_name}"


def _page(context: click.Context) -> Iterator[str]:
    command = context.command
    yield from _head(_name(context), command.get_short_help_str(limit=200))
    yield ".SH SYNOPSIS"
    usage = " ".join(
        _in_italics(word) for word in command.collect_usage_pieces(context)
    )
    yield f"\\fB{_escaped(_path(context))}\\fR {usage}"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(command.help or "")
    yield from _options(context)
    if inner := _inner(context):
        yield ".SH COMMANDS"
        for each in inner:
            yield ".TP"
            yield f".BR {_escaped(_name(each))} (1)"
            yield _text(each.command.get_short_help_str(limit=200))
    yield ".SH EXIT STATUS"
    yield from _tagged(_EXIT_STATUS.items())
    if any("--config" in each.opts for each in command.params) or not context.parent:
        yield ".SH FILES"
        yield ".TP"
        yield ".I /etc/hsm\\-kms/config.yaml"
        yield f"The configuration; {_text(_URL_OF_PAGES)} has an example."
    related = [context.parent] if context.parent else []
    related += inner or (_inner(context.parent) if context.parent else [])
    names = dict.fromkeys(_name(each) for each in related)
    yield from _see_also(name for name in names if name != _name(context))


def _head(name: str, purpose: str) -> Iterator[str]:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    yield '.\\" Written by package/man.py from the help of the command.'
    title, version = _escaped(name.upper()), _escaped(f"{PROGRAM} {__version__}")
    yield f'.TH {title} 1 "{now:%Y-%m-%d}" "{version}" "{_escaped(PROGRAM)} manual"'
    yield from (
        ".nh",
        ".ad l",
    )  # names of commands are not divided, nor lines stretched
    yield ".SH NAME"
    yield f"{_escaped(name)} \\- {_text(purpose[:1].lower() + purpose[1:].rstrip('.'))}"


def _options(context: click.Context) -> Iterator[str]:
    records = [
        record
        for each in context.command.get_params(context)
        if (record := each.get_help_record(context)) and record[1]
    ]
    if not records:
        return
    yield ".SH OPTIONS"
    for names, text in records:
        yield ".TP"
        yield ", ".join(_one_option(each) for each in names.split(", "))
        yield _text(re.sub(r" {2,}", " ", text))


def _one_option(text: str) -> str:
    """Return "--config FILE" with the option in bold, the value in italics."""
    shown = [
        f"\\fB{_escaped(word)}\\fR" if word.startswith("-") else _in_italics(word)
        for word in text.split(" ")
    ]
    return " ".join(shown)


def _in_italics(word: str) -> str:
    return re.sub(r"[\w-]+", lambda found: f"\\fI{_escaped(found[0])}\\fR", word)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield a help text; a paragraph after click's mark keeps its lines."""
    separator = ""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if separator:
            yield separator
        separator = ".PP"
        lines = paragraph.strip("\n").split("\n")
        if lines[0].strip() == "\b":
            yield from (".nf", *(_text(line) for line in lines[1:]), ".fi")
        else:
            yield _text(" ".join(line.strip() for line in lines))


def _tagged(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for tag, text in rows:
        yield ".TP"
        yield f".B {_escaped(tag)}"
        yield _text(text)


def _see_also(names: Iterable[str]) -> Iterator[str]:
    listed = [f".BR {_escaped(name)} (1)" for name in names]
    yield ".SH SEE ALSO"
    yield from (f"{each}," for each in listed[:-1])
    yield from listed[-1:]
    yield ".PP"
    yield f"The documentation is in {_escaped(_URL_OF_PAGES)}."


def _healthcheck_page() -> Iterator[str]:
    name = f"{PROGRAM}-healthcheck"
    yield from _head(name, "answer the probes of the kubelet")
    yield ".SH SYNOPSIS"
    usage = " ".join(map(_in_italics, ("livez|readyz", "[ADMIN_SOCKET]")))
    yield f"\\fB{_escaped(name)}\\fR {usage}"
    yield ".SH DESCRIPTION"
    _, _, rules = inspect.cleandoc(healthcheck.__doc__ or "").partition("\n\n")
    for rule in re.split(r"^\d\. ", rules, flags=re.MULTILINE)[1:-1]:
        yield _text(" ".join(rule.split()))
        yield ".PP"
    yield f"The default of ADMIN_SOCKET is {_escaped(healthcheck.ADMIN_SOCKET)}."
    yield ".SH EXIT STATUS"
    codes = {"0": "The probe succeeds.", "1": "The probe fails.", "2": "Wrong usage."}
    yield from _tagged(codes.items())
    yield from _see_also([PROGRAM])


def _text(text: str) -> str:
    """Return running text, in which what stands in backticks becomes bold."""
    bold = re.sub(r"`([^`]+)`", "\0\\1\1", text)
    shown = _escaped(bold).replace("\0", "\\fB").replace("\1", "\\fR")
    return f"\\&{shown}" if shown.startswith(".") else shown


def _escaped(text: str) -> str:
    return "".join(_ESCAPED.get(each, each) for each in text)


def main(directory: Path) -> None:
    """Write all pages into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
