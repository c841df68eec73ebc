"""The clock that a test moves: Python in another process goes by it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hsm_kms import clock
from tests.harness.clock.driver import YEAR, Clock

# Every way that Python has of asking; one line of answers for each line read.
_ASK = """
import ctypes, datetime, sys, time
libc = ctypes.CDLL(None)
class Both(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("micros", ctypes.c_long)]
for _ in sys.stdin:
    day = Both()
    libc.gettimeofday(ctypes.byref(day), None)
    print(
        datetime.datetime.now(datetime.UTC).timestamp(), time.time(), libc.time(None),
        day.seconds + day.micros / 1e6, time.monotonic(),
        time.clock_gettime(time.CLOCK_BOOTTIME), flush=True,
    )
"""


@pytest.fixture
def asked(directory):
    """A process that tells what it takes the time to be, and its clock."""
    moved = Clock(directory)
    command = [sys.executable, "-I", "-c", _ASK]
    env = {**os.environ, **moved.env}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def ask():
            process.stdin.write("\n")
            process.stdin.flush()
            return [float(each) for each in process.stdout.readline().split()]

        yield moved, ask


@pytest.mark.parametrize("seconds", [0, 5, -5, 0.75, -0.25, YEAR, -YEAR])
def test_moves(asked, seconds):
    """A running process sees the clock move, and only the wall clock."""
    moved, ask = asked
    before = ask()[-2:]
    moved.set(seconds)
    *wall, monotonic, boot = ask()

    assert [True] * 4 == [abs(clock.now() + seconds - each) < 3 for each in wall]
    assert 0 <= monotonic - before[0] < 3
    assert 0 <= boot - before[1] < 3


def test_suspended(asked):
    """A suspension moves all clocks of a running process but the monotonic one."""
    moved, ask = asked
    *_, monotonic, boot = ask()
    moved.suspend(5000)
    *wall, monotonic_then, boot_then = ask()

    assert [True] * 4 == [abs(clock.now() + 5000 - each) < 3 for each in wall]
    assert 0 <= monotonic_then - monotonic < 3
    assert 5000 <= boot_then - boot < 5003


def test_agrees(asked):
    """What the test takes a process's time to be is what it is."""
    moved, ask = asked
    moved.move(-100)
    moved.move(-23.5)

    before = moved.now()
    seen = ask()[0]
    assert -123.5 == moved.seconds
    assert before <= seen <= moved.now()
