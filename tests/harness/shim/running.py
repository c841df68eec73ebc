"""tests/harness/shim/client.py, running in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.softhsm import PIN, TOKEN_LABEL
from tests.harness.wait import SECONDS, patient

if TYPE_CHECKING:
    from tests.harness.shim.driver import Shim
    from tests.harness.softhsm import SoftHsm

ROOT = Path(__file__).parents[3]
IV = "a1" * 12
DATA = "d0" * 32
NO_ANSWER = object()


class RefusedError(Exception):
    """The client's answer was a CK_RV other than CKR_OK."""

    def __init__(self, rv: int, function: str) -> None:
        super().__init__(f"{function}: {rv:#x}")
        self.rv = rv


class Client:
    """tests/harness/shim/client.py, running."""

    def __init__(self, shim: Shim, hsm: SoftHsm) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.harness.shim.client",
                shim.module,
                TOKEN_LABEL,
            ],
            cwd=ROOT,
            env={**os.environ, **hsm.env, **shim.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *command: Any) -> None:
        """Send a command and do not wait."""
        self._stdin.write(json.dumps(command) + "\n")
        self._stdin.flush()

    def read(self, seconds: float = SECONDS) -> Any:
        """The answer, or `NO_ANSWER` in this time."""
        if not select.select([self._stdout], [], [], patient(seconds))[0]:
            return NO_ANSWER
        answer = json.loads(self._stdout.readline())
        if "rv" in answer:
            raise RefusedError(answer["rv"], answer["function"])
        return answer["result"]

    def do(self, *command: Any) -> Any:
        self.ask(*command)
        return self.read()

    def rv(self, *command: Any) -> int:
        """CK_RV of a command, 0 where it works."""
        try:
            self.do(*command)
        except RefusedError as error:
            return error.rv
        return 0

    def log_in(self) -> int:
        """Start, open a session, log in; the handle of the one key."""
        self.do("start")
        self.do("open")
        self.do("login", PIN)
        key: int = self.do("find")[0]
        return key

    def wait(self) -> tuple[int, str]:
        """Exit code and stderr."""
        stderr = self._process.communicate(timeout=patient())[1]
        return self._process.returncode, stderr

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
