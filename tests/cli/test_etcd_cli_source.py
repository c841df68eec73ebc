"""Test where `hsm-kms etcd` reads: options of etcdctl, a pipe, a snapshot."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest

from tests.cli.etcd_cli import COMMAND, OBJECTS, EtcdCli
from tests.harness.etcd_samples import (
    etcdctl_json,
    written,
)
from tests.harness.etcd_server import EtcdServer, Knobs, make_certificates
from tests.harness.wait import patient


@pytest.fixture
def cli(monkeypatch):
    """Provide the commands."""
    return EtcdCli(monkeypatch)


@pytest.fixture
def dump(tmp_path):
    """Provide a file with the output of etcdctl."""
    return written(tmp_path / "dump.json", OBJECTS)


def test_from_a_pipe(cli):
    """The output of etcdctl can be piped in."""
    done = cli.run("scan", "--from-json", "-", stdin=etcdctl_json(OBJECTS))

    assert done.out.startswith("7 objects below /registry/ in stdin, revision 7\n")


def test_the_environment_of_etcdctl(tmp_path, cli):
    """Endpoints, certificates, user and password are read from ETCDCTL_* variables."""
    pki = make_certificates(tmp_path / "pki")
    knobs = Knobs(
        {k.encode(): v for k, v in OBJECTS.items()}, users={"root": "hunter2"}
    )
    with EtcdServer(knobs, pki) as server:
        env = {
            "ETCDCTL_ENDPOINTS": f"https://{server.endpoint}",
            "ETCDCTL_CACERT": str(pki.ca),
            "ETCDCTL_CERT": str(pki.client),
            "ETCDCTL_KEY": str(pki.client_key),
            "ETCDCTL_USER": "root",
            "ETCDCTL_PASSWORD": "hunter2",
            "ETCDCTL_DIAL_TIMEOUT": "5s",
            "ETCDCTL_COMMAND_TIMEOUT": "1m",
        }
        done = cli.run("scan", env=env)
        refused = cli.run("scan", "--user", "root:wrong", env=env)

    assert (0, "") == (done.code, done.err)
    assert done.out.startswith(
        f"7 objects below /registry/ in https://{server.endpoint}, revision 7\n"
    )
    assert 2 == refused.code  # the password stands in two places


def test_nobody_listens():
    """If no etcd listens, cause and hint are printed, and nothing of gRPC's log."""
    done = subprocess.run(
        [*COMMAND, "scan", "--endpoints", "127.0.0.1:1"],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )

    assert (1, "") == (done.returncode, done.stdout)
    assert (
        "hsm-kms: cannot connect to etcd: 127.0.0.1:1: connection refused\n"
        "hint: give the address of etcd as --endpoints\n" == done.stderr
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from-json", "a", "--from-snapshot", "b"], "exclude each other"),
        (["--cert", "a"], "--cert and --key must be given together"),
        (["--password", "x"], "--password needs --user"),
        (["--user", "a:b", "--password", "x"], "in both --user and --password"),
        (["--endpoints", "etcd"], "is not host:port"),
        (["--dial-timeout", "5"], "must be a whole number with its unit"),
        (["--dial-timeout", "0s"], "must be more than 0s"),
    ],
)
def test_bad_usage(options, words, cli):
    """Options that contradict each other are bad usage."""
    done = cli.run("scan", *options)

    assert 2 == done.code, done
    assert words in done.err


def test_a_snapshot_without_its_tools(tmp_path, cli):
    """If etcdutl is not in PATH, the error says so."""
    done = cli.run(
        "scan", "--from-snapshot", tmp_path / "s.db", env={"PATH": "/nowhere"}
    )

    assert 1 == done.code
    assert "etcdutl is not in PATH" in done.err


def test_progress_on_a_terminal(dump):
    """A progress bar is shown on a terminal only."""
    reading, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "scan", "--from-json", str(dump)],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            seen += os.read(reading, 4096)
        except OSError:  # the other side is closed
            break
    os.close(reading)

    assert 0 == process.wait(60)
    assert b"100%  7 objects" in seen
