"""Test that docs/architecture.md names files, classes and functions that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "hsm_kms"
DOCUMENT = ROOT / "docs" / "architecture.md"

SPANS = sorted(set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", DOCUMENT.read_text())))
FILE = re.compile(r"[a-z_]+(/[a-z_.0-9]+)*(/|\.py)")
CLASS = re.compile(r"_?[A-Z][a-z]\w*(\.\w+)?(\(.*\))?")
FUNCTION = re.compile(r"_?[a-z_]+\(.*\)")


@cache
def names():
    """Return the functions of hsm_kms, and its classes with their attributes."""
    functions, classes = set(), {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.add(node.name)
            elif isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, set()).update(attributes(node))
    return functions, classes


def attributes(node):
    """Return the names that a class defines in its body or sets on `self`."""
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            yield each.name
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id
        elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            yield each.attr


def spans(pattern):
    """Return the code spans of the document that have this form."""
    return [span for span in SPANS if pattern.fullmatch(span)]


def test_files_exist():
    """Each file and folder that the page names exists."""
    missing = [
        span
        for span in spans(FILE)
        if not ((PACKAGE / span).exists() or (ROOT / span).exists())
    ]

    assert [] == missing
    assert len(spans(FILE)) > 30


@pytest.mark.parametrize("span", spans(CLASS))
def test_classes_exist(span):
    """Each class that the page names exists, with the attribute named after it."""
    _, classes = names()
    name, _, attribute = span.partition("(")[0].partition(".")

    assert name in classes
    assert not attribute or attribute in classes[name]


@pytest.mark.parametrize("span", spans(FUNCTION))
def test_functions_exist(span):
    """Each function that the page names exists."""
    functions, _ = names()

    assert span.partition("(")[0] in functions


def test_every_room_is_described():
    """The page describes every folder of hsm_kms."""
    rooms = {
        f"{path.name}/"
        for path in PACKAGE.iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }

    assert set() == rooms - set(SPANS)


def test_the_index_of_decisions_is_complete():
    """docs/adr/README.md lists every decision record by its title."""
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    records = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    titles = [(file.name, file.read_text().split("\n")[0][8:]) for file in records]

    assert [] == [name for name, title in titles if f"[{title}]({name})" not in index]
    assert len(records) == len(re.findall(r"\]\(\d{4}-", index))
