"""Test the first hour of the README with the Makefile's own recipe."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness.command_line import HSM_KMS
from tests.harness.pages import walk
from tests.harness.softhsm import softhsm_module
from tests.harness.terminals import InProcess
from tests.harness.wait import patient, wait_for

ROOT = Path(__file__).parents[3]
STATUS = ".venv/bin/hsm-kms status --socket .dev/kms.sock"


class Newcomer:
    """Run `make run` where its prerequisites are made, and commands beside it.

    Args:
        checkout: What `make run` needs of the project.
    """

    def __init__(self, checkout):
        self.checkout = checkout
        self._log = checkout / "log"
        self._beside = InProcess(None, checkout)
        self.serving = None

    def run(self, command, *, typed, after):
        """Return what the server had printed when it was ready."""
        if command != "make run":
            return self._beside.run(command, typed=typed, after=after)
        made = [f"--old-file={target}" for target in ("softhsm2", ".venv/run")]
        with self._log.open("wb") as log:
            self.serving = subprocess.Popen(
                ["make", "--no-print-directory", *made, "run"],
                cwd=self.checkout,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(lambda: self._serves() or self.serving.poll())
        return self.serving.poll() or 0, self._log.read_text()

    def _serves(self):
        if not (self.checkout / ".dev" / "kms.sock").exists():
            return False
        return 0 == self._beside.run(STATUS, typed="", after="")[0]


@pytest.fixture
def newcomer(directory):
    """A checkout in which everything is installed."""
    checkout = directory / "hsm-kms"
    program = checkout / ".venv" / "bin" / "hsm-kms"
    program.parent.mkdir(parents=True)
    python, *arguments = HSM_KMS
    (program.parent / "python").symlink_to(python)
    program.write_text(f'#!/bin/sh\nexec {python} {" ".join(arguments)} "$@"\n')
    program.chmod(0o755)
    shutil.copy(ROOT / "Makefile", checkout)
    shutil.copytree(ROOT / "softhsm", checkout / "softhsm")
    made = Newcomer(checkout)
    yield made
    if made.serving:
        made.serving.send_signal(signal.SIGTERM)
        made.serving.wait(patient())


def test_try_it(newcomer):
    """`make run`, and commands beside it, print what README and quickstart show."""
    names = {
        "/home/you/hsm-kms": os.path.realpath(newcomer.checkout),
        "/usr/lib/softhsm/libsofthsm2.so": softhsm_module(),
    }
    with walk(newcomer, "README.md", "Try it", "Try it (2)", names=names) as page:
        page.run("make run")
        page.run(".venv/bin/hsm-kms check")
        page.run(".venv/bin/hsm-kms status")
    with walk(
        newcomer,
        "docs/quickstart.md",
        "2. Check it",
        "3. Look at the keys",
        "4. Prepare a rotation, and cancel it",
        names=names,
    ) as page:
        page.run(".venv/bin/hsm-kms check")
        page.run(".venv/bin/hsm-kms probe")
        page.run(".venv/bin/hsm-kms keys list")
        page.run(".venv/bin/hsm-kms keys rotate")
        page.run(".venv/bin/hsm-kms keys cancel")
