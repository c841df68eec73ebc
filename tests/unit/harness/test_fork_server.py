"""Forks of a process that has imported the server."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from hsm_kms import __version__
from tests.harness import fork_server
from tests.harness.command_line import PYTHON
from tests.harness.wait import patient


@pytest.fixture
def output(tmp_path):
    """A file that forks write to."""
    with (tmp_path / "output").open("w+") as file:
        yield file


def fork(output, *arguments):
    with Path(os.devnull).open() as nothing:
        streams = (nothing.fileno(), output.fileno(), output.fileno())
        return fork_server.start(PYTHON, arguments, streams)


def read(output):
    output.seek(0)
    return output.read()


def test_command(output):
    """A fork runs the command, writes to the given descriptor, and ends with 0."""
    assert 0 == fork(output, "--version").wait(patient())
    assert f"hsm-kms, version {__version__}\n" == read(output)


def test_exit_code(output):
    """The exit code of a fork is that of the command."""
    forked = fork(output, "serve", "--config", "/nonexistent")

    assert 2 == forked.wait(patient()) == forked.poll()
    assert "/nonexistent cannot be read" in read(output)


def test_directory(output, monkeypatch, tmp_path):
    """A fork has the working directory that the caller has now."""
    (tmp_path / "here.yaml").write_text("version: 2\n")
    monkeypatch.chdir(tmp_path)

    assert 2 == fork(output, "serve", "--config", "here.yaml").wait(patient())
    assert "version: must be" in read(output)


def test_environment(output, monkeypatch):
    """A fork has the environment that the caller has now."""
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "127.0.0.1:1")

    assert 1 == fork(output, "etcd", "scan").wait(patient())
    assert "127.0.0.1:1: " in read(output)


def test_signal(make_plugin, hsm):
    """A fork that is killed reports the signal, and until then that it runs."""
    forked = make_plugin(hsm).start().process
    assert forked.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        forked.wait(0)
    forked.kill()

    assert -signal.SIGKILL == forked.wait(patient())
