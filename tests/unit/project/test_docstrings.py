"""Test that docstrings begin with a verb, as CONTRIBUTING asks."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "hsm_kms"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NO_VERB = {
    *("A", "All", "An", "Each", "Every", "How", "It", "Its", "One", "That", "The"),
    *("These", "They", "This", "Those", "What", "When", "Where", "Whether", "Which"),
    *("Who", "Whoever", "Whose", "Why"),
}


def first_words(path: Path) -> list[tuple[int, str]]:
    """Return line and first word of each docstring in a file."""
    nodes = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, DOCUMENTED)
    ]
    return [
        (getattr(node, "lineno", 1), docstring.split()[0].strip(",.:;"))
        for node in nodes
        if (docstring := ast.get_docstring(node))
    ]


def test_docstrings_begin_with_a_verb():
    """No docstring of the package begins with an article, a pronoun or "What"."""
    found = [
        f"{path.relative_to(ROOT)}:{line} begins with {word}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "_pb2" not in path.name  # generated from proto/
        for line, word in first_words(path)
        if word in NO_VERB
    ]

    assert [] == found
