"""Fixtures of the tests with a kubelet, beside those of the image."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.manifests import MANIFESTS
from tests.harness.required import leave_out
from tests.system.e2e import binaries as programs
from tests.system.e2e.processes import tails
from tests.system.node.kubelet import operator
from tests.system.node.kubelet.machine import machine, missing
from tests.system.node.kubelet.node import Node
from tests.system.node.kubelet.pod_view import PodView

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tests.system.node.images import Image

HINT = "`make test-node` includes these tests"
FOLDERS: list[Path] = []


@pytest.fixture(scope="session", autouse=True)
def complete(included: None) -> None:
    """Leave the tests out, or refuse to, where a kubelet cannot run."""
    if lacking := missing() or programs.missing():
        leave_out("node", f"{lacking}; with it, {HINT}")


@pytest.fixture(scope="session")
def binaries(complete: None) -> programs.Binaries:
    """The programs of a cluster."""
    return programs.cluster()


@pytest.fixture(scope="session")
def node_binaries(complete: None) -> programs.NodeBinaries:
    """The programs of a node."""
    return programs.node()


@pytest.fixture(scope="module")
def new_folder() -> Iterator[Callable[[], Path]]:
    """Make folders with paths short enough for sockets; they go with the module."""

    def make() -> Path:
        FOLDERS.append(Path(tempfile.mkdtemp(prefix="hsm-kms-", dir="/tmp")))
        return FOLDERS[-1]

    yield make
    while FOLDERS:
        shutil.rmtree(FOLDERS.pop(), ignore_errors=True)


@pytest.fixture(scope="session")
def whole_machine(complete: None) -> Iterator[None]:
    """This machine alone, as it was at the end."""
    with machine():
        yield


@pytest.fixture(scope="module")
def bare_node(
    whole_machine: None,
    node_binaries: programs.NodeBinaries,
    new_folder: Callable[[], Path],
) -> Iterator[Callable[[], Node]]:
    """Make nodes with nothing on them."""
    made: list[Node] = []

    def make() -> Node:
        made.append(Node(new_folder(), node_binaries))
        return made[-1]

    yield make
    for node in made:
        node.stop()


@pytest.fixture(scope="module")
def make_node(bare_node: Callable[[], Node], image: Image) -> Callable[..., Node]:
    """Make nodes with the image and a token without a key, as the guide says."""

    def make(config: str = operator.CONFIG, tmpfiles: str = operator.TMPFILES) -> Node:
        node = bare_node()
        node.ctr("images", "import", image.archive)
        operator.prepare(node, config, tmpfiles)
        return node

    return make


@pytest.fixture(scope="session")
def view(
    node_binaries: programs.NodeBinaries,
) -> Callable[[Node], PodView]:
    """See the static pod of a node."""
    return lambda node: PodView(node, node_binaries.crictl)


@pytest.fixture
def kustomize(binaries: programs.Binaries, tmp_path: Path) -> Callable[[str], str]:
    """Build the pod with another text of manifests/kustomization.yaml."""

    def build(text: str) -> str:
        folder = tmp_path / "manifests"
        shutil.copytree(MANIFESTS, folder)
        (folder / "kustomization.yaml").write_text(text)
        done = subprocess.run(
            [binaries.kubectl, "kustomize", folder],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    return build


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """Show the end of every log with a failure."""
    report = yield
    if report.failed:
        for folder in FOLDERS:
            report.sections += tails(folder.glob("*.log"))
    return report
