"""Signals before the server listens, and while it waits for its socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness import command_line
from tests.harness.processes import children_of, has_open, keeps, name_of
from tests.harness.wait import patient, wait_for
from tests.unit.server.socket_tools import lock_of

ROOT = Path(__file__).parents[3]
SIGNALS = {signal.SIGHUP, signal.SIGTERM}


@contextlib.contextmanager
def blocked():
    """Block signals in the processes that are started meanwhile, as the image does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_sighup(make_plugin, hsm):
    """SIGHUP before anything is imported does not kill the server."""
    plugin = make_plugin(hsm)
    with blocked():
        plugin.start(listening=False, spawn=True)
        plugin.process.send_signal(signal.SIGHUP)
    plugin.wait_healthz("ok")

    assert 0 == plugin.stop()


def test_sigterm(make_plugin, hsm):
    """SIGTERM before anything is imported ends the server before it listens."""
    plugin = make_plugin(hsm)
    with blocked():
        plugin.start(listening=False, spawn=True)
        plugin.process.send_signal(signal.SIGTERM)

    assert 0 == plugin.wait()
    assert not plugin.socket.exists()
    assert [] == plugin.events("listening")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a PID namespace")
def test_process_1_of_the_image(make_plugin, hsm):
    """The image's entry point obeys SIGTERM from its first instant, as process 1."""
    plugin = make_plugin(hsm)
    # That of the image for production comes first.
    dockerfile = (ROOT / "Dockerfile").read_text()
    entry = re.search("^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    *before, program = json.loads(entry[1])
    assert "hsm-kms" == program
    command = [*before, *command_line.HSM_KMS, "serve"]
    unshare = ["unshare", "--fork", "--pid", "--kill-child"]
    started = subprocess.Popen(
        [*unshare, *command, "--config", str(plugin.config_file)],
        stderr=subprocess.DEVNULL,
    )
    try:
        (first,) = wait_for(lambda: children_of(started.pid))
        # While it forks, unshare blocks signals too.
        wait_for(lambda: name_of(first) != "unshare" and keeps(first, signal.SIGTERM))
        os.kill(first, signal.SIGTERM)
        assert 0 == started.wait(patient())
    finally:
        started.kill()
        started.wait()


@pytest.fixture
def waiting(plugin, make_plugin):
    """Start a server that waits for the socket of a healthy one."""
    second = make_plugin(plugin.hsm)
    listen = {"socket": str(plugin.socket), "lock_wait": "1000s"}
    second.config["listen"] = listen
    second.socket = plugin.socket
    second.write_config()
    second.start(listening=False)
    wait_for(lambda: has_open(second.process.pid, lock_of(plugin.socket)))
    return second


def test_sigterm_in_the_wait_for_the_socket(plugin, waiting):
    """A server that waits for another one to leave obeys SIGTERM at once."""
    assert 0 == waiting.stop()
    assert "ok" == plugin.healthz()


def test_change_in_the_wait_for_the_socket(plugin, waiting):
    """A server that waited for its socket begins with the configuration of that time.

    Even if the change needs a restart: the server has not started yet.
    """
    waiting.config["apis"]["v2"]["version"] = "v2beta1"
    waiting.config["log"]["level"] = "warning"
    waiting.write_config()
    plugin.stop()
    waiting.wait_healthz("ok")

    assert "v2beta1" == waiting.status().version
    assert [] == waiting.events("listening")  # an event of level info
    assert [] == waiting.events("configuration rejected: a restart is needed")


def test_unfit_change_in_the_wait_for_the_socket(plugin, waiting):
    """A configuration that became invalid meanwhile is rejected, not served."""
    waiting.write_config("version: 2\n")
    plugin.stop()
    waiting.wait_healthz("ok")

    wait_for(lambda: waiting.events("configuration rejected"))
