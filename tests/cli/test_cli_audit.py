"""What operators' commands append to the audit file, and what `check` says of it."""

from __future__ import annotations

import json
import os

import pytest

from hsm_kms.etcd.text import printable
from tests.cli.decrypting import KEY, PASSWORD, decrypt, v2_with
from tests.harness.softhsm import PIN
from tests.unit.audit.audit_rig import audit_path, lines, of


@pytest.fixture
def path(directory):
    """The audit file."""
    return audit_path(directory)


@pytest.fixture
def node(make_plugin, hsm, path):
    """A configuration with an audit file and the KEK of the shared server."""
    return make_plugin(hsm, audit={"file": str(path)})


def refusing(node):
    """Have the node refuse what cannot be recorded."""
    node.merge("audit", {"on_error": "refuse"})
    node.write_config()


def test_etcd_decrypt(shared_server, node, path, directory):
    """Who decrypts which object is recorded before, and before it is given out."""
    file = directory / "object"
    value = v2_with(shared_server)
    ended = decrypt(node, value, "--output-file", file, "--any-key")
    begun, login, done = lines(path)
    text = path.read_text()

    assert 0 == ended.code
    assert ["begun", "accepted", "done"] == [
        begun["phase"],
        login["result"],
        done["phase"],
    ]
    assert {
        "source": "command",
        "pid": begun["pid"],
        "command": "etcd decrypt",
        "key_id": shared_server.status().key_id,
        "object": printable(KEY),
        "destination": str(file),
        "options": ["--any-key"],
        "user": os.getuid(),
        "error": None,
    }.items() <= done.items()
    assert not any(secret in text for secret in (PASSWORD, PIN))


def test_etcd_decrypt_that_cannot_be_recorded(shared_server, node, path):
    """With on_error: refuse nothing is decrypted; otherwise there is a warning."""
    value = v2_with(shared_server)
    path.mkdir()
    warned = decrypt(node, value, "--reveal")
    refusing(node)
    refused = decrypt(node, value, "--reveal")

    assert 0 == warned.code
    assert "warning: an audit record is lost: cannot write the audit file" in warned.err
    assert (1, "") == (refused.code, refused.out)
    assert f"cannot write the audit file {path}: Is a directory" in refused.err


def test_nothing_is_changed_without_a_record(node, path):
    """With on_error: refuse a key is not generated if that cannot be recorded."""
    path.mkdir()
    refusing(node)
    refused = node.cli("keys", "generate", "--another")
    node.merge("audit", {"file": None})
    node.write_config()

    assert 1 == refused.returncode
    assert 1 == len(json.loads(node.cli("keys", "list", "-o", "json").stdout))


def test_a_command_that_fails(node, path):
    """A command that is refused is recorded with the class of its error."""
    node.cli("keys", "generate")

    assert [("begun", None), ("failed", "HsmKmsError")] == [
        (each["phase"], each["error"]) for each in of(path, "command")
    ]


def test_stdout(node):
    """With audit.stdout, a command writes its records to stderr, and only those."""
    node.config["audit"] = {"stdout": True}
    node.write_config()
    done = node.cli("keys", "generate", "--another", "-o", "json", spawn=True)
    records = [json.loads(line) for line in done.stderr.splitlines() if line[0] == "{"]

    assert json.loads(done.stdout)["key_id"] == records[-1]["key_id"]
    assert ["begun", "done"] == [
        each["phase"] for each in records if each["event"] == "command"
    ]


FAULTS = {
    "no directory": (
        lambda path: path.parent.rmdir(),
        "No such file or directory",
        "as root, run: install -d -m 0700",
    ),
    "a directory of others": (
        lambda path: path.parent.chmod(0o720),
        "is not used: other users can write to it",
        "run install -d -m 0700",
    ),
    "a file of others": (
        lambda path: (path.touch(), path.chmod(0o606)),
        "other users can write to it",
        "chmod 0600",
    ),
    "no file": (lambda path: path.mkdir(), "Is a directory", "name a regular file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_check(node, path, name):
    """`check` names what keeps records from being written, and the cure."""
    spoil, cause, cure = FAULTS[name]
    spoil(path)
    shown = node.cli("check", "--offline").stdout

    assert cause in shown
    assert cure in shown.partition(cause)[2]


@pytest.mark.parametrize("there", [False, True])
def test_check_is_content(node, path, there):
    """`check` is content with a file that is there or can be made, and writes none."""
    if there:
        path.touch(mode=0o600)
    done = node.cli("check", "--offline")

    assert (0, there) == (done.returncode, path.exists())
    assert f"audit file {path}" in done.stdout
    assert not there or not path.read_bytes()


@pytest.mark.parametrize("on_error", ["continue", "refuse"])
def test_as_another_user(of_another_user, path, on_error):
    """Who is not the service's user is told so, and not to take its audit from it."""
    node, service = of_another_user, of_another_user.state_dir.stat().st_uid
    os.chown(path.parent, service, service)
    node.merge("audit", {"file": str(path), "on_error": on_error})
    node.write_config()
    for command in (("keys", "generate"), ("token", "retry-pin")):
        refused = node.cli(*command)

        assert (1, "") == (refused.returncode, refused.stdout)
        cause, hint = refused.stderr.splitlines()
        assert cause.startswith(f"hsm-kms: hsm-kms serves as user {service} here")
        assert f"setpriv --reuid={service} " in hint
    assert not path.exists()
