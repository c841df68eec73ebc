"""Prints what `make mutation` found: the score of each file, and each survivor."""

from __future__ import annotations

import ast
import difflib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

MUTANTS = Path("mutants")
UNNOTICED = {0, 33, None}  # all tests passed, no test calls it, the run was interrupted


def main() -> None:
    """Print a table in Markdown, then what each survivor changes."""
    reports = sorted(MUTANTS.rglob("*.py.meta"))
    if not reports:
        sys.exit("nothing is in mutants/: run `make mutation`")
    codes = {path: json.loads(path.read_text())["exit_code_by_key"] for path in reports}
    click.echo("| file | mutants | killed | score |\n|---|---|---|---|")
    for path, by_name in codes.items():
        killed = len(by_name) - len(survivors(by_name))
        score = f"{100 * killed / len(by_name):.1f} %"
        file = path.relative_to(MUTANTS).with_suffix("")
        click.echo(f"| `{file}` | {len(by_name)} | {killed} | {score} |")
    for path, by_name in codes.items():
        for name, change in changes(path.with_suffix(""), survivors(by_name)):
            click.echo(f"\n{name}\n{change}")


def survivors(by_name: dict[str, int | None]) -> list[str]:
    """Return the mutants that no test noticed."""
    return [name for name, code in by_name.items() if code in UNNOTICED]


def changes(file: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each mutant and the lines that it changes."""
    text = file.read_text()
    functions = {
        each.name: (ast.get_source_segment(text, each) or "").splitlines()[1:]
        for each in ast.walk(ast.parse(text))
        if isinstance(each, ast.FunctionDef)
    }
    for name in names:
        mutant = name.rpartition(".")[2]
        original = re.sub(r"__mutmut_\d+$", "__mutmut_orig", mutant)
        lines = difflib.unified_diff(functions[original], functions[mutant], n=1)
        yield name, "\n".join(line.rstrip() for line in list(lines)[3:])


if __name__ == "__main__":
    main()
