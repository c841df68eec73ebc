"""Test that docs/logging.md lists every event of the log, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
LEVELS = {"debug", "info", "warning", "error"}
FLOODS = {"log", "log_change"}


def constants(node):
    """Yield the strings that an expression can be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from constants(node.body)
        yield from constants(node.orelse)


def logged(call):
    """Yield the events that a call logs, if they stand there as text."""
    if not isinstance(call.func, ast.Attribute):
        return
    name, owner = call.func.attr, ast.unparse(call.func.value)
    if name in LEVELS and owner.endswith("log"):
        yield from constants(call.args[0])
    elif name in FLOODS and re.search("log|repeats|changes|slow", owner):
        yield from constants(call.args[1 if name == "log" else 2])
    elif name == "_reject":
        yield from constants(call.args[0])


def events():
    """Return the events of the whole package."""
    found = set()
    for path in (ROOT / "hsm_kms").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.update(logged(node))
            # An event that is chosen first, and logged later.
            if isinstance(node, ast.Assign) and "event" == ast.unparse(node.targets[0]):
                found.update(constants(node.value))
    return found


def test_every_event_is_documented():
    """The page has a row for each event, and for no other."""
    page = (ROOT / "docs/logging.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    bugs = page.partition("## Bugs")[2]
    documented = re.findall("`([^`]+)`", " ".join([*rows, bugs]))

    assert sorted(events()) == sorted(documented)
