"""Test what `hsm-kms migrate` shows while it runs."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import time

import pytest

from hsm_kms.cli.migrate.progress import Progress
from hsm_kms.migrate.resources import Resource
from hsm_kms.migrate.rewrite import Pace
from tests.cli.migrating import Migrating
from tests.harness.terminals import read_all
from tests.harness.wait import patient, wait_for

SECRETS = Resource(name="secrets", group="", version="v1", namespaced=True)
OBJECTS = 150


def test_on_a_terminal(directory):
    """A terminal gets one line, redrawn at most ten times a second, with the ETA."""
    migrating = Migrating(directory)
    migrating.play(objects=OBJECTS)
    ours, theirs = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(
        migrating.command("--rate", "100"), stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown = read_all(ours)
    seconds = time.monotonic() - began
    process.wait(patient())
    process.stdout.close()

    lines = [line.strip() for line in shown.split("\r") if "objects" in line]
    form = rf"secrets: \d+ of {OBJECTS} objects, \d+ s left, [\d.]+/s, limited by .*"
    assert len(lines) >= 3
    assert len(lines) <= 10 * seconds
    assert any(re.fullmatch(form, line) for line in lines), lines
    assert re.search(r"\r +\rhint: ", shown), "the line is not blank at the end"


@pytest.fixture
def lines(capsys):
    """Return a function that returns the lines that were shown so far."""
    shown = []

    def read():
        shown.extend(capsys.readouterr().err.splitlines())
        return shown

    return read


def test_without_a_terminal(lines):
    """Otherwise a line now and then says how it stands, and the last one sums up."""
    pace = Pace(1000)
    with Progress(pace, line_seconds=0.05) as progress:
        progress.page(SECRETS, 100, 1_900)
        for _ in range(50):
            pace.wait()
            progress.done()
        wait_for(lambda: any("50 of 2,000" in line for line in lines()))
        progress.page(SECRETS, 100, None)
        wait_for(lambda: any("secrets: 50 objects," in line for line in lines()))

    sure = [line for line in lines() if line.startswith("secrets: 50 of 2,000 objects")]
    assert re.fullmatch(
        r".* objects, \d+ (s|min) left, [\d.]+/s, limited by .*", sure[0]
    )
    assert re.fullmatch(r"50 objects in \d+ s, [\d.]+/s, limited by .*", lines()[-1])


@pytest.mark.parametrize(
    ("rate", "slow", "limit"),
    [
        pytest.param(100, 0.0, "limited by --rate 100", id="rate"),
        pytest.param(3000, 0.02, "limited by the API server (", id="API server"),
    ],
)
def test_what_limits_it(rate, slow, limit, lines):
    """The progress names what limits the speed."""
    pace = Pace(rate)
    began = time.monotonic()
    with Progress(pace, line_seconds=0.1) as progress:
        progress.page(SECRETS, 100, None)
        # A machine that is busy may be the limit at first.
        while not any(limit in line for line in lines()):
            assert time.monotonic() - began < patient(), lines()
            pace.wait()
            time.sleep(slow)  # what an API server takes
            progress.done()


def test_while_the_api_server_does_not_answer(lines):
    """The progress is shown also while nothing goes on."""
    with Progress(Pace(100), line_seconds=0.02) as progress:
        progress.page(SECRETS, 100, 0)
        wait_for(lambda: len(lines()) > 1)

    assert "secrets: 0 of 100 objects, waiting for the API server" == lines()[0]
