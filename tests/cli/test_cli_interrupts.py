"""Test Ctrl-C in the first second of every command: no traceback, exit code 130."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from hsm_kms import interrupts
from tests.cli.every_command import LEAVES, SHARED, every_command
from tests.harness.command_line import HSM_KMS
from tests.harness.examples import LONG
from tests.harness.processes import without_coverage
from tests.harness.wait import patient

STEPS = [step / 20 for step in range(1, 21)]  # seconds
FEW = {("etcd", "scan"), ("probe",), ("keys", "list"), ("serve",)}
FEW_STEPS = [0.1, 0.25, 0.4, 0.7]
AT_ONCE = 3  # processes
BY_CTRL_C = {130, -signal.SIGINT}  # the latter before Python has run a line of ours

BEFORE_MAIN = {("__main__.py", "<module>"), ("start.py", "<module>")}


@pytest.fixture
def commands(make_plugin, hsm, shared_server, tmp_path):
    """Provide the command lines by command."""
    node = make_plugin(hsm, **SHARED)
    node.write_config()
    lines = [*every_command(node, shared_server, tmp_path)]
    lines.append(("serve", "--config", str(node.config_file)))
    found = {
        path: line for line in lines for path in LEAVES if path == line[: len(path)]
    }
    assert set(found) == LEAVES
    return found if LONG else {path: found[path] for path in FEW}


def interrupted(arguments, seconds):
    """Press Ctrl-C so long after the start; return exit code and stderr."""
    process = subprocess.Popen(
        [*HSM_KMS, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=without_coverage(),
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    try:
        _, err = process.communicate(timeout=patient(60))
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, err


def frames(err):
    """Return the files and functions of ours in a traceback."""
    return set(re.findall(r'hsm_kms/(\S+)", line \d+, in (\S+)', err))


def test_in_the_first_second(commands):
    """Ctrl-C ends each command silently at any moment, with 130 unless it was done."""
    steps = STEPS if LONG else FEW_STEPS
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = set()
        for path, arguments in commands.items():
            ended = list(pool.map(partial(interrupted, arguments), steps))
            # While Python itself starts, nothing of ours can help.
            ended = [
                (c, err) for c, err in ended if "Traceback" not in err or frames(err)
            ]
            codes = {code for code, _ in ended}
            seen |= codes
            assert codes <= BY_CTRL_C | (set() if path == ("serve",) else {0, 1}), ended
            for _, err in ended:
                assert frames(err) <= BEFORE_MAIN, (path, err)
                assert "Exception ignored" not in err, (path, err)
    # A command may be done before; `serve` never is.
    assert BY_CTRL_C & seen


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_ignored(number):
    """What a command was started to ignore, as by nohup, it ignores in any case."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interrupts.raising_when_ended():
            signal.raise_signal(number)

        assert signal.SIG_IGN == signal.getsignal(number)
    finally:
        signal.signal(number, before)
