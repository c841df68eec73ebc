"""Test what the `keys` commands ask on a terminal, and that Ctrl-C means no."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from tests.cli.keys_rig import Keys
from tests.harness.command_line import HSM_KMS
from tests.harness.processes import state
from tests.harness.wait import SECONDS, wait_for


@pytest.fixture
def keys(make_plugin, hsm):
    """Run the commands on a token that all nodes share, with one key."""
    return Keys(make_plugin(hsm, token={"shared": True}))


class Terminal:
    """Run a command with a terminal of its own."""

    def __init__(self, keys, *arguments):
        self._outer, inner = pty.openpty()
        path = str(keys.plugin.config_file)
        self.process = subprocess.Popen(
            [
                *("setsid", "--ctty", *HSM_KMS, "keys"),
                *(*arguments, "--config", path),
            ],
            stdin=inner,
            stdout=inner,
            stderr=inner,
        )
        os.close(inner)
        self.text = ""

    def until(self, words):
        """Read until the command has printed this."""
        while words not in self.text:
            readable, _, _ = select.select([self._outer], [], [], SECONDS)
            assert readable, self.text
            self.text += os.read(self._outer, 1000).decode()

    def type(self, text):
        """Type this line."""
        os.write(self._outer, text.encode())

    def interrupt(self):
        """Press Ctrl-C until the command has ended."""
        self._until_ended(lambda: self.type("\x03"))

    def terminate(self):
        """Send SIGTERM until the command has ended."""
        self._until_ended(self.process.terminate)

    def _until_ended(self, act):
        """Act until the command has ended.

        Once may be too early: a signal that comes between Python's last check and
        its read(2) waits for the next key.
        """
        ended = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < ended:
            act()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)

    def end(self):
        """Return the exit code."""
        try:
            while select.select([self._outer], [], [], SECONDS)[0]:
                self.text += os.read(self._outer, 1000).decode()
        except OSError:  # it closed its side
            pass
        code = self.process.wait(SECONDS)
        os.close(self._outer)
        return code


@pytest.mark.parametrize(
    ("typed", "code", "left"),
    [("y\n", 0, 1), ("n\n", 1, 2), ("\n", 1, 2)],
    ids=["yes", "no", "enter"],
)
def test_confirm(keys, typed, code, left):
    """Only the answer yes changes the token."""
    new = keys.rotate()
    terminal = Terminal(keys, "cancel", new)
    terminal.until("destroy this key? [y/N]")
    terminal.type(typed)

    assert code == terminal.end()
    assert "Traceback" not in terminal.text
    assert ("not confirmed, so nothing was changed" in terminal.text) == bool(code)
    assert left == len(keys.states())


def test_interrupted_while_asking(keys):
    """Ctrl-C at the question means no."""
    terminal = Terminal(keys, "cancel", keys.rotate())
    terminal.until("destroy this key? [y/N]")
    terminal.interrupt()

    # The latter if Ctrl-C is pressed again while Python exits.
    assert terminal.end() in {130, -signal.SIGINT}
    assert "Traceback" not in terminal.text
    assert "interrupted" in terminal.text
    assert 2 == len(keys.states())


def test_interrupted_while_asking_for_the_pin(keys):
    """Ctrl-C at the question for the PIN ends the command, at once."""
    terminal = Terminal(keys, "list", "--pin-prompt")
    terminal.until("PIN: ")
    wait_for(lambda: state(terminal.process.pid) == "S")
    terminal.type("\x03")

    assert 130 == terminal.end()
    assert "hsm-kms: interrupted" in terminal.text


def test_terminated_while_asking(keys):
    """SIGTERM at the question changes nothing, and leaves no worker."""
    new = keys.rotate()
    terminal = Terminal(keys, "cancel", new)
    terminal.until("destroy this key? [y/N]")
    terminal.terminate()

    assert -signal.SIGTERM == terminal.end()
    assert 2 == len(keys.states())


def test_bars_and_questions_go_to_stderr(keys):
    """Questions and progress bars go to stderr, so stdout has the result only."""
    new = keys.rotate()
    (old,) = [key_id for key_id in keys.states() if key_id != new]
    keys.configure("keys", current=new)
    ended = keys.run("retire", old, "--without-scan", "--yes")

    assert 1 == len(ended.out.splitlines())
    assert "will refuse to decrypt" in ended.err
