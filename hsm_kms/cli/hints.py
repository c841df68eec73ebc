"""Let no hint lead back to the command that prints it, or to another configuration.

The same error can reach the log of the server and many commands. Its hint may name the
command that helps an operator of the server, which is no help to those who just ran it.
Those who gave --config need it again for the command that the hint names, and so do
those who gave --journal.
"""

from __future__ import annotations

import re
import shlex
import sys
from typing import Final

_GROUPS: Final = {"keys", "etcd", "token", "config", "rotation"}
_WITHOUT_CONFIG: Final = {
    ("completion",),
    ("config", "schema"),
    ("etcd", "scan"),
    ("etcd", "show"),
    ("init",),
    ("migrate",),
    ("nodes",),
    ("probe",),
}
_NAMED: Final = re.compile("`hsm-kms ([^`]+)`")
# Between these each part of a hint stands by itself.
_BETWEEN: Final = re.compile("(; |: |, or |, then | or )")


def leading_on(hint: str | None) -> str | None:
    """Return the hint without the parts that name the running command.

    The commands that are left get the --config of the running one.

    Args:
        hint: The hint of an error, or None.

    Returns:
        None if nothing is left.
    """
    if not hint:
        return None
    running = _command(sys.argv[1:])
    kept = ""
    # Each part comes with what separates it from the part before.
    parts = ["", *_BETWEEN.split(hint)]
    for between, part in zip(parts[::2], parts[1::2], strict=True):
        if not _leads_back(part, running):
            kept += between + part if kept else part
    return with_config(kept) or None


def with_config(hint: str) -> str:
    """Return the hint with the options of the running command at its commands.

    These are --config, and --journal for the commands of a rotation.
    """
    return _NAMED.sub(_with_options, hint)


def _with_options(named: re.Match[str]) -> str:
    """Return a command as it must be run where the running one was."""
    words = named[1].split()
    if "--help" in words:
        return named[0]
    options = [] if _command(words) in _WITHOUT_CONFIG else ["--config"]
    options += ["--journal"] if words[0] == "rotation" else []
    more = ""
    for option in options:
        value = _value(option, sys.argv[1:])
        if value is not None and option not in words:
            more += f" {option} {shlex.quote(value)}"
    return f"`hsm-kms {named[1]}{more}`"


def _value(option: str, arguments: list[str]) -> str | None:
    """Return the value of an option, or None if it is not among the arguments."""
    for number, each in enumerate(arguments):
        name, equals, value = each.partition("=")
        if name == option:
            return value if equals else "".join(arguments[number + 1 : number + 2])
    return None


def _leads_back(part: str, running: tuple[str, ...]) -> bool:
    return any(
        _command(words) == running
        for words in (named.split() for named in _NAMED.findall(part))
        if "--help" not in words
    )


def _command(words: list[str]) -> tuple[str, ...]:
    """Return the name of a command without its options and arguments."""
    return tuple(words[: 2 if words[:1] and words[0] in _GROUPS else 1])
