"""Do what README.md says, in a bare root: its commands, compared with what it shows.

Usage: python3 -m tests.bare.readme, in the checkout, with nothing but Python. A command
that goes on when it has printed what the page shows is a server; the next command is
tried until the server is ready, as somebody would who types it too early. Commands that
need kube-apiserver are left out: other tests run those.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.harness.pages import ANYTHING, Step, blocks, match

PAGE = "README.md"
YOURS = "/home/you/hsm-kms"  # where the page has the checkout
OURS = ("make ", ".venv/")  # what the commands begin with that a checkout provides
PATIENCE = 1800.0  # seconds; the first command installs packages
READY = 300.0  # seconds, in which a server that has started is ready


class Walk:
    """The commands of the page, and the servers that some of them have started."""

    def __init__(self) -> None:
        self._names = {YOURS: os.path.realpath(Path.cwd())}
        self._serving: list[subprocess.Popen[bytes]] = []

    def take(self, step: Step) -> None:
        """Run one command until it prints what the page shows."""
        sys.stdout.write(f"$ {step.command}\n")
        until = time.monotonic() + (READY if self._serving else PATIENCE)
        while (printed := self._run(step, until)) is not None:
            if not self._serving or time.monotonic() > until:
                shown = "\n".join(step.output)
                sys.exit(f"{step.place} shows:\n{shown}\nbut it prints:\n{printed}")
            time.sleep(1)

    def _run(self, step: Step, until: float) -> str | None:
        """Return what a command printed, None if that is what the page shows."""
        command = step.command.removesuffix(ANYTHING)
        for shown, here in self._names.items():
            command = command.replace(shown, here)
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                ["sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            while True:
                code = process.poll()
                # Not by a file position, which the process shares.
                size = os.fstat(log.fileno()).st_size
                printed = os.pread(log.fileno(), size, 0).decode(errors="replace")
                learned = match(step.output, printed, self._names)
                if code is not None:
                    break
                if step.output and learned is not None:
                    self._serving.append(process)
                    break
                if time.monotonic() > until:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    break
                time.sleep(0.2)
        if code or (step.output and learned is None):
            return f"{printed}(exit code {code})"
        self._names |= learned or {}
        sys.stdout.write(printed)
        return None

    def close(self) -> None:
        """Stop the servers."""
        for process in self._serving:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def main() -> None:
    """Take every step of the page that a checkout allows."""
    steps = [
        step
        for block in blocks(PAGE).values()
        if all(step.command.startswith(OURS) for step in block)
        for step in block
    ]
    if len(steps) < 2:
        sys.exit(f"{PAGE} shows no session any more: {steps}")
    walk = Walk()
    try:
        for step in steps:
            walk.take(step)
    finally:
        walk.close()
    sys.stdout.write(f"{len(steps)} commands print what {PAGE} shows\n")


if __name__ == "__main__":
    main()
