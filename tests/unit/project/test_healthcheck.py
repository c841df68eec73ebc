"""Test when the kubelet's probes succeed."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from hsm_kms import healthcheck
from hsm_kms.config.schema import Http
from tests.unit.project.test_layers import modules_after

OK = b"HTTP/1.1 200 OK\r\n\r\nok\n"
FAILED = b"HTTP/1.1 503 Service Unavailable\r\n\r\nthe token failed\n"


@contextmanager
def answering(directory, answer):
    """Answer one request with these bytes; never, if they are None."""
    path = str(directory / "admin.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(8192)
                connection.sendall(answer)

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield path


@pytest.fixture
def impatient(monkeypatch):
    """Wait for an answer only for a moment."""
    monkeypatch.setattr(healthcheck, "SECONDS", 0.05)


@pytest.mark.parametrize(
    ("page", "answer", "code", "said"),
    [
        ("livez", OK, 0, "ok"),
        ("readyz", OK, 0, "ok"),
        ("readyz", FAILED, 1, "the token failed"),
        ("livez", FAILED, 1, "the token failed"),
        ("livez", b"", 1, "does not speak HTTP"),
        ("readyz", b"SSH-2.0-200 200\r\n\r\n", 1, "does not speak HTTP"),
        ("readyz", b"HTTP/1.1\r\n\r\n", 1, ""),
    ],
)
def test_answers(page, answer, code, said, directory, capsys):
    """A probe succeeds if the page is answered with 200, and prints what it says."""
    with answering(directory, answer) as path:
        assert code == healthcheck.run([page, path])

    assert said in capsys.readouterr().out


@pytest.mark.parametrize("page", ["livez", "readyz"])
def test_a_server_that_hangs(page, directory, impatient, capsys):
    """Both probes fail if a server listens and does not answer."""
    with answering(directory, None) as path:
        assert 1 == healthcheck.run([page, path])

    assert "nothing came for 0.05 s" in capsys.readouterr().out


def test_a_server_that_accepts_nothing(directory, impatient, capsys):
    """The liveness probe fails if the queue of connections stays full."""
    with answering(directory, None) as path:
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(1)]
        for each in waiting:
            each.connect(path)

        assert 1 == healthcheck.run(["livez", path])
        for each in waiting:
            each.close()

    assert "its queue is full" in capsys.readouterr().out


@pytest.mark.parametrize("left", [False, True], ids=["no socket", "a socket left over"])
@pytest.mark.parametrize(("page", "code"), [("livez", 0), ("readyz", 1)])
def test_no_server(page, code, left, directory, capsys):
    """Without a server the pod is not ready, and that is no reason to restart it."""
    path = str(directory / "admin.sock")
    if left:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(path)

    assert code == healthcheck.run([page, path])
    assert "no server listens on" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [[], ["healthz"], ["livez", "a", "b"], ["--help"]])
def test_usage(wrong, capsys):
    """Wrong usage is an error, and is explained."""
    assert 2 == healthcheck.run(wrong)
    assert "usage: hsm-kms-healthcheck" in capsys.readouterr().err


def test_default_socket():
    """The default is that of the configuration."""
    assert str(Http().admin_socket) == healthcheck.ADMIN_SOCKET


def test_nothing_heavy_is_imported():
    """A probe imports two modules besides those that every Python has."""
    before = modules_after("pass")

    assert {"hsm_kms", "hsm_kms.healthcheck", "_socket", "__future__"} >= (
        modules_after("import hsm_kms.healthcheck") - before
    )


def test_a_probe_of_its_own_process(directory):
    """The program exits with the code, as the kubelet runs it."""
    command = [sys.executable, "-m", "hsm_kms.healthcheck"]
    with answering(directory, FAILED) as path:
        ended = subprocess.run(
            [*command, "readyz", path],
            check=False,
            capture_output=True,
            env=os.environ,
        )

    assert (1, b"the token failed\n") == (ended.returncode, ended.stdout)
