"""Test the manual pages that package/man.py writes from the help of the commands."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from package import man
from tests.cli.every_command import GROUPS_TOO
from tests.harness.wait import patient


@pytest.fixture(scope="module")
def pages():
    """Every page by the name of its file."""
    return dict(man.pages())


def test_a_page_for_every_command(pages):
    """Each command and group has a page, and so has hsm-kms-healthcheck."""
    names = {"-".join(["hsm-kms", *path]) for path in GROUPS_TOO}

    assert {f"{name}.1" for name in names | {"hsm-kms-healthcheck"}} == set(pages)


def test_every_option_is_described(pages):
    """A page has each option of its command that --help shows."""
    for path, command in GROUPS_TOO.items():
        page = pages["-".join(["hsm-kms", *path]) + ".1"].replace("\\-", "-")
        for parameter in command.params:
            if not getattr(parameter, "hidden", False) and parameter.opts[0][0] == "-":
                assert f"\\fB{parameter.opts[-1]}\\fR" in page, (path, parameter)


def test_pages_name_pages(pages):
    """Every page that another refers to exists."""
    for name, text in pages.items():
        for referred in re.findall(r"^\.BR (\S+) \(1\)", text, re.MULTILINE):
            assert f"{referred.replace(chr(92), '')}.1" in pages, name


def test_date(monkeypatch):
    """With SOURCE_DATE_EPOCH, the pages are the same on any day."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1750000000")

    for text in dict(man.pages()).values():
        assert ' 1 "2025-06-15" ' in text


def test_mandoc_finds_no_fault(pages, tmp_path):
    """`mandoc -T lint` has no warning, and shows what a reader looks for."""
    if not shutil.which("mandoc"):
        pytest.skip("mandoc is not installed")
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    files = sorted(tmp_path.iterdir())
    linted = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *files],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    shown = subprocess.run(
        ["mandoc", "-T", "ascii", tmp_path / "hsm-kms-keys-rotate.1"],
        check=True,
        capture_output=True,
        text=True,
        timeout=patient(60),
    ).stdout

    assert ("", "") == (linted.stdout, linted.stderr)
    plain = re.sub(r".\x08", "", shown)
    assert "hsm-kms keys rotate [OPTIONS]" in plain
    assert "/etc/hsm-kms/config.yaml" in plain
