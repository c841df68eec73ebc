"""Fixtures of the tests of the Debian package, which run with HSM_KMS_DEB=1 only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.harness.required import leave_out
from tests.system.deb import bare_root

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
HINT = "`make test-deb` includes these tests"
EPOCH = "1750000000"


class Package(NamedTuple):
    """What `make deb` makes.

    Args:
        deb: The package.
        sbom: The SBOM beside it.
    """

    deb: Path
    sbom: Path


def _reason() -> str | None:
    if os.environ.get("HSM_KMS_DEB") != "1":
        return f"HSM_KMS_DEB is not 1; {HINT}"
    if lacking := bare_root.missing():
        return f"{lacking}; with it, {HINT}"
    return None


@pytest.fixture(scope="session", autouse=True)
def included() -> None:
    """Leave the tests out, or refuse to, with a reason."""
    if reason := _reason():
        leave_out("deb", reason)


def build(folder: Path, umask: int = 0o022) -> Package:
    """Build the package into a folder."""
    subprocess.run(
        [sys.executable, "-m", "package.deb", folder],
        cwd=ROOT,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "TMPDIR": str(folder)},
        check=True,
        umask=umask,
        timeout=bare_root.TIMEOUT,
    )
    (deb,) = folder.glob("*.deb")
    (sbom,) = folder.glob("*.json")
    return Package(deb, sbom)


@pytest.fixture(scope="session")
def scratch(included: None) -> Iterator[Path]:
    """A folder on a disk, because roots are large."""
    folder = Path(tempfile.mkdtemp(prefix="hsm-kms-deb-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def package(scratch: Path) -> Package:
    """The package of this checkout."""
    (scratch / "package").mkdir()
    return build(scratch / "package")


@pytest.fixture(scope="session")
def installed(scratch: Path, package: Package) -> Iterator[bare_root.BareRoot]:
    """A bare root in which apt has installed the package."""
    root = bare_root.bare_root(scratch / "root")
    shutil.copy(package.deb, root.path / "root")
    root.install(f"/root/{package.deb.name}")
    yield root
    root.close()


@pytest.fixture
def own_root(
    installed: bare_root.BareRoot, scratch: Path
) -> Iterator[bare_root.BareRoot]:
    """A copy of it that a test may change."""
    root = installed.copy(scratch / "own")
    yield root
    root.close()
