"""The package that servers and workers under test run."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import fork_server
from tests.harness.command_line import PYTHON
from tests.harness.processes import children_of, looking_inside

ROOT = Path(__file__).parents[3]


def package_of(pid):
    """Path of the package that the interpreter of this process finds."""
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    code = "import hsm_kms; print(hsm_kms.__file__)"
    if "-c" in arguments:  # a worker
        program = "-c"
        set_path, _, _ = arguments[arguments.index("-c") + 1].partition("from hsm_kms")
        code = set_path + code
    else:
        program = "-m" if "-m" in arguments else fork_server.__file__
    interpreter = arguments[: arguments.index(program)]
    with looking_inside():
        folder = Path(f"/proc/{pid}/cwd").readlink()
    found = subprocess.run(
        [*interpreter, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(found.stdout.strip())


@pytest.fixture(params=["forked", "spawned"])
def packages(request, make_plugin, hsm):
    """Package paths of a server and of its workers."""
    plugin = make_plugin(hsm).start(spawn=request.param == "spawned")
    plugin.wait_healthz("ok")
    server = plugin.process.pid
    return {package_of(pid) for pid in [server, *children_of(server)]}


def test_package(packages):
    """Server and workers run the package that is under test.

    That is the checkout, or the wheel in the environment that HSM_KMS_PYTHON names; the
    checkout, which is the working directory, does not shadow it.
    """
    (package,) = packages

    if "HSM_KMS_PYTHON" not in os.environ:
        assert ROOT / "hsm_kms" / "__init__.py" == package
    else:
        assert "site-packages" == package.parents[1].name
        assert Path(PYTHON).parents[1] in package.parents
