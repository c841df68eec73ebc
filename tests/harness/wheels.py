"""Wheels of the checkout under two versions, unpacked side by side."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from hsm_kms import __version__
from tests.harness.wait import patient

ROOT = Path(__file__).parents[2]
NEXT = "99.0.0"
_BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE")


class Versions(NamedTuple):
    """Folders that make a version the one that runs, in PYTHONPATH.

    Args:
        older: This version.
        newer: The same source as version `NEXT`, which knows one setting more:
            log.new_setting.
    """

    older: Path
    newer: Path


def build(folder: Path) -> Versions:
    """Build both wheels.

    Args:
        folder: An empty folder.
    """
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hsm_kms", source / "hsm_kms", ignore=ignored)
    for name in _BUILT_FROM:
        shutil.copy(ROOT / name, source / name)
    older = _unpacked(source, folder / "older")
    version = f'"{__version__}"'
    _replace(source / "hsm_kms/__init__.py", version, f'"{NEXT}"')
    _replace(
        source / "hsm_kms/config/schema.py",
        '    format: Literal["json", "text"] = "json"\n',
        '    format: Literal["json", "text"] = "json"\n    new_setting: bool = False\n',
    )
    return Versions(older, _unpacked(source, folder / "newer"))


def _replace(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert 1 == text.count(before), path
    path.write_text(text.replace(before, after))


def _unpacked(source: Path, folder: Path) -> Path:
    """Build a wheel and unpack it, as an installation of it would."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=patient(120),
    )
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    wheel.unlink()
    return folder
