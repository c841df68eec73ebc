"""Run the commands that a page shows, and compare what they print with the page.

A page shows a command in a ```console block, after "$ " or, as root, "# ". What
follows is its output, on stdout and stderr. A backslash continues a command; "..." at
its end stands for options, in the output for any lines or the rest of a line, and two
blanks with "#" begin a comment. A command without output may print anything.

What differs from run to run (a number, a time, a duration, hexadecimal digits, the
width of a column) only has to be of the same kind. A key_id stands for one key on the
whole page: the first one that a command prints in its place.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
ANYTHING = "..."

# What varies, as it is on the page: the kind of thing that a command must print there.
_KINDS = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    r"\d{8}T\d{6}Z": r"\d{8}T\d{6}Z",
    r"\b[0-9a-f]{16,}(?:\.\.\.)?(?!\w)": r"[0-9a-f]{16,}",
    r"(?<![\w.:/-])\d+ (?:ms|s|min|h|d)\b": r"\d+ (?:ms|s|min|h|d)",
    r"(?<![\w.:/-])\d+\.\d(?![\w.])": r"\d+\.\d",
    # Zero is not varied, because "0 objects" says something else than "5 objects".
    r"(?<![\w.:/-])[1-9][\d,]*(?![\w:/-]|\.\w)": r"[1-9][\d,]*",
    r"\.\.\.$": r".*",
    r" {2,}": r" {2,}",
}
_KEY_ID = r"\b[a-z2-7]{26}\b"
_RIGHT_ALIGNED = re.compile(r" +(?=\d)")
_HEXDUMP = re.compile(r"[0-9a-f]{6}[1-9a-f]0(?: {1,2}[0-9a-f]{2}){16}  \|.{16}\|")


class Step(NamedTuple):
    """One command of a page.

    Args:
        place: Page and line number.
        command: The command, on one line.
        output: Its lines of output, none if the page shows none.
    """

    place: str
    command: str
    output: tuple[str, ...]


class Terminal(Protocol):
    """Run commands."""

    def run(self, command: str, *, typed: str, after: str) -> tuple[int, str]:
        """Run a command, and return its exit code and what it printed.

        Args:
            command: The line that a person would type.
            typed: What is typed then; "" for no terminal.
            after: What the command prints before that; "" for nothing.
        """


def pages() -> list[str]:
    """Return the paths of all pages, below the project's folder."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks(page: str) -> dict[str, list[Step]]:
    """Return the commands in each console block of a page.

    A block has the name of the heading above it; the second block below the same
    heading ends in " (2)".
    """
    found: dict[str, list[Step]] = {}
    heading, times = "", 0
    lines = iter(enumerate((ROOT / page).read_text().splitlines(), 1))
    for number, line in lines:
        if title := re.fullmatch(r"#+ (.*)", line):
            heading, times = title[1], 0
        elif line.lstrip() == "```console":
            times += 1
            indent = line.index("`")
            inside: list[tuple[int, str]] = []
            for at, each in lines:
                if each.lstrip() == "```":
                    break
                inside.append((at, each[indent:]))
            name = f"{heading} ({times})" if times > 1 else heading
            assert name not in found, f"{page}:{number}: two headings {heading!r}"
            found[name] = list(_steps(page, inside))
    return found


def _steps(page: str, lines: list[tuple[int, str]]) -> Iterator[Step]:
    place, command, output = "", "", list[str]()
    for at, line in lines:
        if command.endswith("\\"):
            command = command[:-1].rstrip() + " " + line.strip()
        elif line.startswith(("$ ", "# ")):
            if command:
                yield Step(place, _without_comment(command), tuple(output))
            place, command, output = f"{page}:{at}", line[2:], []
        else:
            assert command, f"{page}:{at}: output before a command"
            output.append(line)
    yield Step(place, _without_comment(command), tuple(output))


def _without_comment(command: str) -> str:
    return re.sub(r"\s{2,}#.*", "", command)


class Walk:
    """Go through some blocks of a page, command after command.

    Args:
        terminal: Where the commands are run.
        steps: The commands.
        names: What this machine has in place of a text of the page, such as a path.
    """

    def __init__(
        self, terminal: Terminal, steps: list[Step], names: Mapping[str, str]
    ) -> None:
        self.steps = steps
        self.names = dict(names)
        self._terminal = terminal

    def run(
        self,
        beginning: str,
        more: str = "",
        *,
        code: int = 0,
        typed: str = "",
        after: str = "",
        on: Sequence[Terminal] = (),
    ) -> str:
        """Run the next command, compare its output, and return it.

        Args:
            beginning: What the command begins with.
            more: Options in the place of "...", or at the end.
            code: The exit code that it must have.
            typed: What is typed on a terminal; "" for no terminal.
            after: What the command prints before that; "" for nothing.
            on: Where to run it, one after the other, if not where the others run; what
                the last one prints is returned.
        """
        step = self.steps.pop(0)
        assert step.command.startswith(beginning), step
        command = re.sub(
            _any_of(self.names),
            lambda found: self.names[found[0]],
            step.command.removesuffix(ANYTHING).rstrip(),
        )
        command = f"{command} {more}".rstrip()
        printed = ""
        for terminal in on or [self._terminal]:
            ended, printed = terminal.run(command, typed=typed, after=after)
            what = f"{step.place}: {command} ended with {ended}:\n{printed}"
            assert code == ended, what
            if step.output:
                self._compare(step, printed)
        return printed

    def _compare(self, step: Step, printed: str) -> None:
        learned = match(step.output, printed, self.names)
        if learned is None:
            shown = "\n".join(step.output)
            raise AssertionError(
                f"{step.place} shows for `{step.command}`:\n{shown}\n"
                f"but it prints:\n{printed}"
            )
        self.names |= learned


@contextmanager
def walk(
    terminal: Terminal, page: str, *titles: str, names: Mapping[str, str]
) -> Iterator[Walk]:
    """Go through blocks of a page; every command in them must be run.

    Write page and titles as literal strings: a test looks for them, to find the blocks
    that nothing runs.

    Args:
        terminal: Where the commands are run.
        page: Its path below the project's folder.
        titles: Names of the blocks, as `blocks` returns them.
        names: What this machine has in place of a text of the page, such as KEY_ID.
    """
    found = blocks(page)
    walking = Walk(terminal, [step for title in titles for step in found[title]], names)
    yield walking
    assert [] == walking.steps


def _any_of(names: Mapping[str, str]) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or "(?!)"


def match(
    shown: tuple[str, ...], printed: str, names: Mapping[str, str]
) -> dict[str, str] | None:
    """Compare an output with the page.

    Args:
        shown: The lines on the page.
        printed: The output.
        names: What this machine has in place of a text of the page.

    Returns:
        The key_id that was printed in place of each new one of the page; None if the
        output differs.
    """
    groups: dict[str, str] = {}
    pattern = "".join(
        r"(?:.*\n)*?" if line == ANYTHING else _pattern(line, names, groups) + r" *\n"
        for line in shown
    )
    found = re.fullmatch(pattern, printed.rstrip("\n") + "\n")
    if found is None:
        return None
    return {key_id: found[group] for key_id, group in groups.items()}


def _pattern(line: str, names: Mapping[str, str], groups: dict[str, str]) -> str:
    if _HEXDUMP.fullmatch(line):
        return _HEXDUMP.pattern
    aligned = _RIGHT_ALIGNED.match(line)
    rest = line[aligned.end() :] if aligned else line
    kinds = "|".join(f"(?P<kind{n}>{kind})" for n, kind in enumerate(_KINDS))
    varied = re.compile(f"(?P<name>{_any_of(names)})|(?P<key_id>{_KEY_ID})|{kinds}")

    def one(found: re.Match[str]) -> str:
        text = found[0]
        if found["name"]:
            return re.escape(names[text])
        if found["key_id"]:
            if text in groups:
                return f"(?P={groups[text]})"
            groups[text] = f"key{len(groups)}"
            return f"(?P<{groups[text]}>{_KEY_ID})"
        assert found.lastgroup
        return list(_KINDS.values())[int(found.lastgroup.removeprefix("kind"))]

    parts, end = [" *" if aligned else ""], 0
    for found in varied.finditer(rest):
        parts += [re.escape(rest[end : found.start()]), one(found)]
        end = found.end()
    return "".join([*parts, re.escape(rest[end:])])
