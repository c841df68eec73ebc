"""Test that the documents name things that exist."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from hsm_kms.cli import cli
from tests.cli.every_command import LEAVES

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_links_lead_somewhere():
    """Every relative link in a document names a file of the project."""
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in DOCUMENTS
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]

    assert [] == broken


def test_every_page_is_in_the_book():
    """mkdocs.yml lists each page of docs/, except the template of decisions, once."""
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"(\S+\.md)$", nav, re.MULTILINE)

    assert sorted(pages - {"adr/template.md"}) == sorted(
        page for page in listed if not page.startswith("project/")
    )


def test_every_command_is_in_the_table():
    """The table of docs/commands.md is complete and has no unknown command."""
    row = re.compile(r"^\| `hsm-kms ([a-z]\S*(?: [a-z]\S*)?)[ `]", re.MULTILINE)

    named = row.findall((ROOT / "docs" / "commands.md").read_text())
    assert sorted(map(" ".join, LEAVES)) == sorted(name.strip("`") for name in named)


def test_make_targets_in_documents_exist():
    """`make something` in a document is a target of the Makefile."""
    targets = set(
        re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"(?:`|\$ )make ([a-z0-9-]+)", document.read_text())
    }

    assert set() == named - targets
    assert {"run", "test", "test-e2e", "lint"} <= named


def groups(group):
    yield group
    for each in group.lazy:
        if getattr(group.commands[each], "lazy", None):
            yield from groups(group.commands[each])


@pytest.mark.parametrize("group", list(groups(cli)), ids=lambda group: group.name)
def test_a_group_lists_its_commands_in_their_own_words(group):
    """The help of a group has the first line of each command's own help."""
    assert {name: each.help for name, each in group.lazy.items()} == {
        name: each.get_short_help_str(limit=200)
        for name, each in group.commands.items()
    }


@pytest.mark.parametrize("path", sorted(LEAVES), ids=" ".join)
def test_every_command_explains_itself(path):
    """The help of a command says what it does before it lists the options."""
    shown = CliRunner().invoke(cli, [*path, "--help"])

    assert 0 == shown.exit_code
    assert re.search(r"\n\n  [A-Z].*\.", shown.output)


def test_the_attacks_have_their_tests():
    """Each row of the table of attacks names tests that exist."""
    page = (ROOT / "docs/threat-model.md").read_text()
    _, _, section = page.partition("## Attacks that were tried")
    rows = [
        re.split(r"(?<!\\)\|", line)[3]
        for line in section.partition("\n## ")[0].splitlines()
        if line.startswith("| ") and not line.startswith("| attack")
    ]
    defined = {
        path.name: set(
            re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
        )
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    everywhere = set().union(*defined.values())
    assert rows
    for row in rows:
        names = re.findall(r"`([^`]+)`", row)
        assert names, row
        for name in names:
            file, _, test = name.rpartition("::")
            if name.endswith(".py"):
                assert Path(name).name in defined, name
            elif file:
                assert test in defined[Path(file).name], name
            else:
                assert test in everywhere, name
