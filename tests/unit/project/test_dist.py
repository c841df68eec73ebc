"""Test that `make dist` builds the same files wherever and whenever it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hsm_kms import __version__
from tests.harness.wait import patient

ROOT = Path(__file__).parents[3]
EPOCH = "1750000000"
SOURCES = (
    "package",
    "hsm_kms",
    "proto",
    "requirements",
    "softhsm",
    "docs",
    "manifests",
)
FILES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md")
WHEEL = f"hsm_kms-{__version__}-py3-none-any.whl"


def build(folder, umask):
    """Build in a copy of the checkout, and return the files by name."""
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, symlinks=True)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~umask)
    subprocess.run(
        [folder / "package" / "dist.sh"],
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHON": sys.executable},
        check=True,
        capture_output=True,
        umask=umask,
        timeout=patient(120),
    )
    return {path.name: path.read_bytes() for path in (folder / "dist").iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What two copies of the checkout build, with different modes and times."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("one", "another"))
    return build(one, 0o022), build(other, 0o077)


def test_reproducible(built):
    """Two directories, two umasks and two times of day give the same bytes."""
    one, other = built

    assert {WHEEL, f"hsm_kms-{__version__}.tar.gz"} == set(one)
    assert sorted(one) == sorted(other)
    for name, data in one.items():
        assert data == other[name], name


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    """The wheel that pip builds from the sdist is the wheel of the release."""
    sdist = tmp_path / f"hsm_kms-{__version__}.tar.gz"
    sdist.write_bytes(built[0][sdist.name])
    # shutil's `filter` is in Python 3.11.4 and later; Debian 12 has 3.11.2.
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path], check=True)
    command = ["-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path / f"hsm_kms-{__version__}",
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        check=True,
        capture_output=True,
        timeout=patient(120),
    )

    assert built[0][WHEEL] == (tmp_path / WHEEL).read_bytes()


def test_the_version_is_in_one_place():
    """Package, image and manual pages take the version from hsm_kms/__init__.py."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert ["version"] == project["project"]["dynamic"]
    assert "hsm_kms/__init__.py" == project["tool"]["hatch"]["version"]["path"]
    for name in ("pyproject.toml", "Dockerfile", "Makefile"):
        assert __version__ not in (ROOT / name).read_text(), name
