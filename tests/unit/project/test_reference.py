"""Test that the generated references are those of the program."""

import pytest

from book.configuration import described
from book.marked import regenerate
from book.pages import regenerated


@pytest.mark.parametrize(
    ("path", "text"), list(regenerated()), ids=lambda each: getattr(each, "name", "")
)
def test_the_references_are_those_of_the_program(path, text):
    """Generating the references changes nothing; else run `make docs-reference`."""
    assert text == path.read_text()


def test_every_setting_has_a_meaning():
    """No key in the tables of docs/configuration.md lacks its meaning."""
    [page] = [text for path, text in regenerated() if path.name == "configuration.md"]

    assert [] == [line for line in page.splitlines() if line.endswith("|  |")]


def test_prose_stays():
    """Only what is between the comments is replaced."""
    begin = "<!-- `make docs-reference` writes {} -->\n"
    page = f"before\n{begin.format('a')}old\n<!-- end -->\nbetween\n"
    page += f"{begin.format('b')}<!-- end -->\nafter\n"

    assert page.replace("old\n", "A|old\n").replace(
        "writes b -->\n", "writes b -->\nB|\n"
    ) == regenerate(page, lambda what, old: f"{what.upper()}|{old}")


def test_a_page_without_a_part():
    """A page that has lost its comments is not taken for a complete one."""
    with pytest.raises(ValueError, match="no part"):
        regenerate("nothing here\n", lambda _what, old: old)


def test_a_type_without_words():
    """A new type of setting needs words for the documentation."""
    with pytest.raises(LookupError, match="no words"):
        described(complex)
