"""Fixtures of the end-to-end tests, which run with HSM_KMS_E2E=1 only."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.examples import LONG
from tests.harness.required import leave_out
from tests.system.e2e import binaries as programs
from tests.system.e2e.plugin import softhsm_module
from tests.system.e2e.processes import tails

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

# It takes six minutes, in which it mostly waits.
collect_ignore = [] if LONG else ["test_outage_in_real_time.py"]

FOLDERS: list[Path] = []
HINT = "`make test-e2e` includes these tests"


def _reason() -> str | None:
    """Say why these tests cannot or should not run, None if they do."""
    if os.environ.get("HSM_KMS_E2E") != "1":
        return f"HSM_KMS_E2E is not 1; {HINT}"
    if lacking := programs.missing():
        return f"{lacking}; with either, {HINT}"
    if not softhsm_module():
        return f"SoftHSM2 is not installed; with it, {HINT}"
    return None


@pytest.fixture(scope="session", autouse=True)
def included() -> None:
    """Leave the tests out, or refuse to, with a reason."""
    if reason := _reason():
        leave_out("e2e", reason)


@pytest.fixture(scope="session")
def binaries(included: None) -> programs.Binaries:
    """The programs of a cluster."""
    try:
        return programs.cluster()
    except programs.MissingToolError as error:
        leave_out("e2e", f"{error}; with Go, {HINT}")


@pytest.fixture(scope="session")
def loader(included: None) -> Path:
    """The API server's own encryption code as a program."""
    try:
        return programs.loader()
    except programs.MissingToolError as error:
        leave_out("e2e", f"{error}; with Go, {HINT}")


@pytest.fixture(scope="session")
def controller_manager(included: None) -> Path:
    """The program kube-controller-manager."""
    try:
        return programs.controller_manager()
    except programs.MissingToolError as error:
        leave_out("e2e", f"{error}; with Go, {HINT}")


@pytest.fixture(scope="session")
def kine_program(included: None) -> Path:
    """The program kine."""
    try:
        return programs.kine()
    except programs.MissingToolError as error:
        leave_out("e2e", str(error))


@pytest.fixture(scope="module")
def new_folder() -> Iterator[Callable[[], Path]]:
    """Make folders with paths short enough for sockets.

    They are removed with the module, unless HSM_KMS_E2E_KEEP is 1.
    """

    def make() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="hsm-kms-"))
        FOLDERS.append(folder)
        return folder

    yield make
    while FOLDERS:
        folder = FOLDERS.pop()
        if os.environ.get("HSM_KMS_E2E_KEEP") != "1":
            shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """Show the end of every log with a failure."""
    report = yield
    if report.failed:
        for folder in FOLDERS:
            report.sections += tails(folder.rglob("*.log"))
    return report
