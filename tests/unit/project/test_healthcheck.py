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
def test_answers(page, answer, code, said, directory, capfd):
    """A probe succeeds if the page is answered with 200, and prints what it says."""
    with answering(directory, answer) as path:
        assert code == healthcheck.run([page, path])

    assert said in capfd.readouterr().out


@pytest.mark.parametrize("page", ["livez", "readyz"])
def test_a_server_that_hangs(page, directory, impatient, capfd):
    """Both probes fail if a server listens and does not answer."""
    with answering(directory, None) as path:
        assert 1 == healthcheck.run([page, path])

    assert "nothing came for 0.05 s" in capfd.readouterr().out


def test_a_server_that_accepts_nothing(directory, impatient, capfd):
    """The liveness probe fails if the queue of connections stays full."""
    with answering(directory, None) as path:
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(1)]
        for each in waiting:
            each.connect(path)

        assert 1 == healthcheck.run(["livez", path])
        for each in waiting:
            each.close()

    assert "its queue is full" in capfd.readouterr().out


@pytest.mark.parametrize("left", [False, True], ids=["no socket", "a socket left over"])
@pytest.mark.parametrize(("page", "code"), [("livez", 0), ("readyz", 1)])
def test_no_server(page, code, left, directory, capfd):
    """Without a server the pod is not ready, and that is no reason to restart it."""
    path = str(directory / "admin.sock")
    if left:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(path)

    assert code == healthcheck.run([page, path])
    assert "no server listens on" in capfd.readouterr().out


def test_a_path_that_no_socket_has(capfd):
    """A path that is longer than a socket's is named with its cause."""
    assert 1 == healthcheck.run(["readyz", "/" + "x" * 200])
    assert "AF_UNIX path too long" in capfd.readouterr().out


@pytest.mark.parametrize("wrong", [[], ["healthz"], ["livez", "a", "b"], ["--help"]])
def test_usage(wrong, capfd):
    """Wrong usage is an error, and is explained."""
    assert 2 == healthcheck.run(wrong)
    assert "usage: hsm-kms-healthcheck" in capfd.readouterr().err


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


@pytest.mark.parametrize("page", ["livez", "readyz"])
@pytest.mark.parametrize("stdout", ["/dev/full", "closed", "broken pipe"])
def test_output_that_nobody_takes(page, stdout, directory):
    """A server that is well passes the probe, also if its text cannot be written."""
    run = f'"$0" -m hsm_kms.healthcheck {page} "$1"'
    shell = {
        "/dev/full": f"{run} >/dev/full",
        "closed": f"{run} >&-",
        "broken pipe": f'({run}; echo "$?" >"$1.code") | :; exit $(cat "$1.code")',
    }[stdout]
    with answering(directory, OK) as path:
        ended = subprocess.run(
            ["sh", "-c", shell, sys.executable, path], check=False, capture_output=True
        )

    assert (0, b"") == (ended.returncode, ended.stderr)
