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
from tests.harness.terminals import read_all
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
            "ETCDCTL_DIAL_TIMEOUT": "2.5s",
            "ETCDCTL_COMMAND_TIMEOUT": "1m30s",
            "ETCDCTL_INSECURE_TRANSPORT": "f",
            "ETCDCTL_INSECURE_SKIP_TLS_VERIFY": "false",
            # Only for etcdctl itself.
            "ETCDCTL_API": "3",
            "ETCDCTL_DEBUG": "true",
            "ETCDCTL_WRITE_OUT": "table",
            "ETCDCTL_KEEPALIVE_TIME": "2s",
        }
        done = cli.run("scan", env=env)
        refused = cli.run("scan", "--user", "root:wrong", env=env)

    assert (0, "") == (done.code, done.err)
    assert done.out.startswith(
        f"7 objects below /registry/ in https://{server.endpoint}, revision 7\n"
    )
    assert 2 == refused.code  # the password stands in two places


def test_pem_files_from_a_pipe(tmp_path, cli):
    """CA, certificate and key can come from stdin, where no file is at hand."""
    pki = make_certificates(tmp_path / "pki")
    held = {key.encode(): value for key, value in OBJECTS.items()}
    ours, private, ca = (
        path.read_bytes() for path in (pki.client, pki.client_key, pki.ca)
    )
    dashes = ("--cacert", "-", "--cert", "-", "--key", "-")
    with EtcdServer(held, pki) as server:
        scan = ("scan", "--endpoints", server.endpoint)
        whole = cli.run(*scan, *dashes, stdin=ours + private + ca)
        partly = cli.run(
            *(*scan, "--cacert", pki.ca, "--cert", pki.client, "--key", "-"),
            stdin=private,
        )
        refused = {
            stdin: cli.run(*scan, *dashes, stdin=stdin)
            for stdin in (ca + ours + private, ours + ca, b"", b"x" * (2 << 20))
        }

    for done in (whole, partly):
        assert (0, "") == (done.code, done.err)
        assert done.out.startswith("7 objects below /registry/ in ")
    causes = [
        *("there is no PEM certificate with its private key in stdin",) * 2,
        "stdin is empty for a PEM file",
        "stdin is too long for a PEM file",
    ]
    hint = "pipe it in, the client's certificate first: `cat client.crt client.key ca"
    for cause, done in zip(causes, refused.values(), strict=True):
        assert 1 == done.code
        assert done.err.startswith(f"hsm-kms: {cause}\nhint: {hint}"), done


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
        "hint: see whether etcd runs there, or give its address as --endpoints\n"
        == done.stderr
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from-json", "a", "--from-snapshot", "b"], "exclude each other"),
        (["--cert", "a"], "--cert and --key must be given together"),
        (["--password", "x"], "--password needs --user"),
        (["--user", "a:b", "--password", "x"], "in both --user and --password"),
        (["--endpoints", "etcd"], "is not host:port"),
        (["--dial-timeout", "5"], "must be a duration such as 500ms, 2.5s, 1m30s"),
        (["--dial-timeout", "-1s"], "must be a duration such as 500ms, 2.5s, 1m30s"),
        (["--dial-timeout", "0"], "must be more than 0s"),
        (["--insecure-transport=no"], "'no' is neither true nor false"),
        (["-w", "json"], "--write-out is an option of etcdctl: use -o text or -o json"),
        (["--endpoints", ""], "--endpoints names no endpoint"),
        (["--endpoints", " ,"], "--endpoints names no endpoint"),
    ],
)
def test_bad_usage(options, words, cli):
    """Options that contradict each other are bad usage."""
    done = cli.run("scan", *options)

    assert 2 == done.code, done
    assert words in done.err


ENDPOINTS = "--endpoints=127.0.0.1:1 --endpoints=127.0.0.1:2,127.0.0.1:3"
# The global options of etcdctl 3.6 as a user may give them, and a word of the refusal.
ETCDCTL_OPTIONS = {
    "--cacert=/dev/null": "",
    "--cert=/c --key=/k": "",
    "--command-timeout=1m0.5s": "",
    "--debug": "",
    "--dial-timeout=.1s": "",
    "--discovery-srv=example.com": "--discovery-srv is not supported",
    "--discovery-srv-name=x": "--discovery-srv-name is not supported",
    "-d example.com": "--discovery-srv is not supported",
    ENDPOINTS: "",
    "--hex": "",
    "--hex=true": "",
    "--insecure-discovery=false": "",
    "--insecure-skip-tls-verify": "--insecure-skip-tls-verify is not supported",
    "--insecure-skip-tls-verify=true": "--insecure-skip-tls-verify is not supported",
    "--insecure-skip-tls-verify=false": "",
    "--insecure-transport": "",
    "--insecure-transport=false": "",
    "--keepalive-time=2s": "",
    "--keepalive-timeout=6s": "",
    "--max-recv-bytes=0": "",
    "--max-request-bytes=0": "",
    "--user=a:b": "",
    "--user=a --password=b": "",
}


@pytest.mark.parametrize("command", ["show", "scan"])
def test_every_option_of_etcdctl(command, cli, dump):
    """Each option of etcdctl is taken, or refused by name; for a file all are taken."""
    rest = [next(iter(OBJECTS))] if command == "show" else []
    for options, words in ETCDCTL_OPTIONS.items():
        given = [*options.split(), *rest]
        from_file = cli.run(command, *given, "--from-json", dump)
        assert (0, "") == (from_file.code, from_file.err), (options, from_file)
        if "--endpoints" not in options:
            given += ["--endpoints", "127.0.0.1:1"]
        done = cli.run(command, *given)
        if words:
            assert (2, True) == (done.code, words in done.err), (options, done)
            continue
        # Taken: what is wrong is that there is no such file, or no etcd.
        wanted = (
            "cannot be read",
            "no PEM cert",
            "cannot connect to etcd: 127.0.0.1:1",
        )
        assert 1 == done.code, (options, done)
        assert any(cause in done.err for cause in wanted), (options, done)
    assert "127.0.0.1:3" in cli.run("scan", *ENDPOINTS.split()).err


def test_variables_of_etcdctl_that_are_refused(cli, dump):
    """A variable is refused by its own name, and only where etcd is asked."""
    for name in ("DISCOVERY_SRV", "DISCOVERY_SRV_NAME", "INSECURE_SKIP_TLS_VERIFY"):
        env = {f"ETCDCTL_{name}": "true"}
        refused = cli.run("scan", env=env)
        assert 2 == refused.code
        assert refused.err.startswith(f"hsm-kms: ETCDCTL_{name} is not supported: give")
        assert 0 == cli.run("scan", "--from-json", dump, env=env).code


def test_a_password_variable_without_a_user(cli):
    """ETCDCTL_PASSWORD without a user is not used, as by etcdctl."""
    done = cli.run(
        "scan", "--endpoints", "127.0.0.1:1", env={"ETCDCTL_PASSWORD": "hunter2"}
    )
    assert "cannot connect to etcd" in done.err


def test_a_snapshot_without_its_tools(tmp_path, cli):
    """If etcdutl is not in PATH, the error says so."""
    (tmp_path / "s.db").touch()
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
    seen = read_all(reading)

    assert 0 == process.wait(60)
    assert "100%  7 objects" in seen
