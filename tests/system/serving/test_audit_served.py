"""The audit of a running server: what is in it, what is not, and a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from hsm_kms.audit.events import Event
from hsm_kms.errors import AuditError
from hsm_kms.health.healthz import health
from hsm_kms.wrapping.record import Record
from tests.harness.command_line import HSM_KMS
from tests.harness.plugin import code_of
from tests.harness.softhsm import PIN
from tests.harness.spelled import spellings
from tests.harness.wait import wait_for
from tests.system.conformance.inside import metrics
from tests.unit.audit.audit_rig import HEADER, audit_path, lines, of

HOUR = 3600.0
PAGE = (Path(__file__).parents[3] / "docs/audit.md").read_text()


@pytest.fixture
def path(directory):
    """The audit file, in a directory of its own."""
    return audit_path(directory)


@pytest.fixture
def audited(make_plugin, hsm, path):
    """A healthy server with an audit file."""
    plugin = make_plugin(hsm, audit={"file": str(path)}).start()
    plugin.wait_healthz("ok")
    return plugin


def has(path, event, **fields):
    """Return True if the file has such a record with these values."""
    return any(fields.items() <= each.items() for each in of(path, event))


def documented():
    """Return the fields of each event, as docs/audit.md lists them."""
    sections = re.split(r"^### (\w+)$", PAGE, flags=re.MULTILINE)
    parts = dict(zip(sections[1::2], sections[2::2], strict=True))
    rows = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
    return {
        name: rows.findall(text.partition("## When")[0]) for name, text in parts.items()
    }


def test_the_page_is_the_schema():
    """docs/audit.md has each event with its fields and an example, and no other."""
    known = {each.__struct_config__.tag: each for each in Event.__args__}
    examples = re.findall(r"^```json\n(.*)\n```$", PAGE, re.MULTILINE)
    header = PAGE.partition("## Events")[0]

    fields = {name: list(each.__struct_fields__) for name, each in known.items()}
    assert fields == documented()
    assert [*HEADER, "event"] == re.findall(r"^\| `(\w+)` \|", header, re.MULTILINE)
    assert list(known) == [json.loads(each)["event"] for each in examples]


def test_examples_are_records(tmp_path):
    """Each example of docs/audit.md is a record as the program writes it."""
    file = tmp_path / "examples"
    examples = re.findall(r"^```json\n(.*)\n```$", PAGE, re.MULTILINE)
    file.write_text("".join(f"{each}\n" for each in examples))
    compact = [
        json.dumps(each, separators=(",", ":"), ensure_ascii=False)
        for each in lines(file)
    ]

    assert examples == compact


def test_what_a_server_records(audited, path):
    """Requests, clients, keys, logins and configurations are recorded as documented."""
    client = {"client_pid": os.getpid(), "client_uid": os.getuid()}
    connected = {"state": "connected", "client_gid": os.getgid(), **client}
    wait_for(lambda: has(path, "client", **connected))  # looked for once a second
    sealed = audited.encrypt(b"d" * 32, uid="e-1")
    audited.decrypt(sealed.ciphertext, sealed.key_id, uid="d-1")
    code = code_of(lambda: audited.decrypt(b"no record", sealed.key_id, uid="d-2"))
    assert "INVALID_ARGUMENT" == code
    audited.merge("apis", {"v1": {"enabled": True, "wrapping": "software"}})
    audited.write_config()
    wait_for(lambda: has(path, "wrapping", api="v1", wrapping="software"))
    audited.config["scope"] = 7
    audited.write_config()
    wait_for(lambda: has(path, "config", result="rejected"))
    pid = audited.process.pid
    assert 0 == audited.stop()
    found = lines(path)

    assert list(range(1, len(found) + 1)) == [each["seq"] for each in found]
    assert {("serve", pid)} == {(each["source"], each["pid"]) for each in found}
    for each in found:
        assert [*HEADER, "event", *documented()[each["event"]]] == list(each)
    assert [("server", "started"), ("server", "stopped")] == [
        (each["event"], each["state"]) for each in (found[0], found[-1])
    ]
    assert ["accepted"] == [each["result"] for each in of(path, "pin")]
    key_id = sealed.key_id
    assert has(path, "key", key_id=key_id, state="current", before=None)
    assert [
        ("v2.Encrypt", "e-1", key_id, "token", "OK", None),
        ("v2.Decrypt", "d-1", key_id, "token", "OK", None),
        ("v2.Decrypt", "d-2", key_id, None, "INVALID_ARGUMENT", "CiphertextError"),
    ] == [
        tuple(each[n] for n in ("method", "uid", "key_id", "path", "code", "error"))
        for each in of(path, "request")
    ]
    (applied, rejected) = of(path, "config")
    assert ("applied", ["apis.v1.wrapping"]) == (applied["result"], applied["changed"])
    assert "scope: must be text" in rejected["reason"]


def test_keys(make_plugin, hsm, path, clock):
    """Each state of a key is recorded: pending, current, decrypt-only, and gone."""
    plugin = make_plugin(hsm, audit={"file": str(path)}, token={"shared": True})
    plugin.start(spawn=True).wait_healthz("ok")
    first = plugin.status().key_id
    rotate = ("keys", "rotate", "--activate-in", "1h", "-o", "json")
    second = json.loads(plugin.cli(*rotate, spawn=True).stdout)["key_id"]
    wait_for(lambda: has(path, "key", key_id=second, state="pending"))
    clock.move(HOUR)
    wait_for(lambda: has(path, "key", key_id=second, state="current"))
    wait_for(
        lambda: has(path, "key", key_id=first, state="decrypt-only", before="current")
    )
    retire = ("keys", "retire", first, "--yes", "--without-scan")
    done = plugin.cli(*retire, spawn=True)
    assert 0 == done.returncode, done.stderr
    wait_for(lambda: has(path, "key", key_id=first, state="gone"))

    assert [("pending", None), ("current", "pending")] == [
        (each["state"], each["before"])
        for each in of(path, "key")
        if each["key_id"] == second
    ]
    assert [
        ("current", None),
        ("decrypt-only", "current"),
        ("gone", "decrypt-only"),
    ] == [
        (each["state"], each["before"])
        for each in of(path, "key")
        if each["key_id"] == first
    ]
    commands = [
        (each["command"], each["phase"], each["key_id"], each["options"])
        for each in of(path, "command")
    ]
    assert [
        ("keys rotate", "begun", None, []),
        ("keys rotate", "done", second, []),
        ("keys retire", "begun", first, ["--without-scan"]),
        ("keys retire", "done", first, ["--without-scan"]),
    ] == commands


def test_a_rejected_pin(make_plugin, hsm, path, directory):
    """A rejected PIN is recorded once, and so is that an operator vouches for it."""
    pin = directory / "wrong"
    pin.touch(mode=0o600)
    pin.write_text("1234-wrong")
    plugin = make_plugin(hsm, audit={"file": str(path)}, token={"pin_file": str(pin)})
    plugin.start()
    wait_for(lambda: path.exists() and has(path, "pin", result="rejected"))
    plugin.cli("token", "retry-pin")
    plugin.stop()

    assert [
        ("serve", "rejected", "C_Login", "CKR_PIN_INCORRECT"),
        ("command", "cleared", None, None),
        ("command", "rejected", "C_Login", "CKR_PIN_INCORRECT"),
    ] == [
        (each["source"], each["result"], each["function"], each["ckr"])
        for each in of(path, "pin")
    ]
    assert ["begun", "failed"] == [each["phase"] for each in of(path, "command")]
    assert "1234-wrong" not in path.read_text()


def test_no_secret_is_recorded(make_plugin, hsm, path):
    """The audit has no PIN, DEK, local KEK or ciphertext, in any spelling."""
    plugin = make_plugin(
        hsm,
        audit={"file": str(path)},
        apis={"v1": {"enabled": True, "wrapping": "software"}},
    )
    plugin.start().wait_healthz("ok")
    dek = os.urandom(32)
    wait_for(lambda: plugin.events("local KEK created"))
    sealed, local = plugin.encrypt(dek), plugin.v1_encrypt(dek)
    plugin.decrypt(sealed.ciphertext, sealed.key_id)
    plugin.v1_decrypt(local)
    wrong = sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1])
    code_of(lambda: plugin.decrypt(wrong, sealed.key_id))
    plugin.stop()
    text = path.read_text()

    assert 5 == len(of(path, "request"))
    secrets = PIN.encode(), dek, Record.decode(sealed.ciphertext).ciphertext, local
    for secret in secrets:
        for form in spellings(secret).values():
            assert form not in text
            assert json.dumps(form)[1:-1] not in text
        assert str(list(secret))[1:-1] not in text


def test_rotated(audited, path):
    """After SIGHUP, records go to the file that has the name then; none is lost."""
    sealed = audited.encrypt(b"d" * 32)
    old = path.rename(path.with_suffix(".1"))
    os.kill(audited.process.pid, signal.SIGHUP)

    def decrypted():
        audited.decrypt(sealed.ciphertext, sealed.key_id)
        return path.exists()

    wait_for(decrypted)
    audited.stop()
    found = lines(old) + lines(path)

    assert list(range(1, len(found) + 1)) == [each["seq"] for each in found]
    assert "stopped" == found[-1]["state"]


def test_turned_on_and_off(make_plugin, hsm, path):
    """The audit is turned on and off without a restart, and that is recorded."""
    plugin = make_plugin(hsm, health={"interval": "1s"}).start()
    plugin.wait_healthz("ok")
    plugin.encrypt(b"d" * 32)
    plugin.config["audit"] = {"file": str(path)}
    plugin.write_config()
    wait_for(lambda: plugin.events("configuration applied"))
    key_id = plugin.encrypt(b"d" * 32, uid="seen").key_id
    current = {"key_id": key_id, "state": "current", "before": None}
    wait_for(lambda: path.exists() and has(path, "key", **current))
    plugin.config["audit"] = {}
    plugin.write_config()
    wait_for(lambda: len(plugin.events("configuration applied")) == 2)
    plugin.encrypt(b"d" * 32)
    plugin.stop()

    assert ["seen"] == [each["uid"] for each in of(path, "request")]
    assert [["audit"], ["audit"]] == [each["changed"] for each in of(path, "config")]
    assert "config" == lines(path)[0]["event"]


def test_stdout(make_plugin, hsm, directory):
    """With audit.stdout, stdout has the records and nothing else."""
    plugin = make_plugin(hsm, audit={"stdout": True})
    out = directory / "out"
    command = [*HSM_KMS, "serve", "--config", str(plugin.config_file)]
    with out.open("wb") as stdout, plugin.log_file.open("ab") as log:
        plugin.process = subprocess.Popen(command, stdout=stdout, stderr=log)
    plugin.wait_healthz("ok")

    def client_seen():
        """Send a request; return the records of clients.

        The server looks for clients at most ten times a second, so that it can miss
        one that connects for a single request.
        """
        plugin.encrypt(b"d" * 32)
        return of(out, "client")

    wait_for(client_seen)
    plugin.stop()

    assert {"server", "pin", "key", "client", "request"} == {
        each["event"] for each in lines(out)
    }


def test_stdout_that_nobody_reads(make_plugin, hsm):
    """With on_error: refuse, records that hang make Status fail until they are read."""
    plugin = make_plugin(hsm, audit={"stdout": True, "on_error": "refuse"})
    serve = [*HSM_KMS, "serve", "--config", str(plugin.config_file)]
    with plugin.log_file.open("ab") as log:
        plugin.process = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=log)
    with plugin.process.stdout as out:
        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4096)
        plugin.wait_healthz("ok")
        wait_for(lambda: code_of(lambda: plugin.encrypt(b"d" * 32)) == "UNAVAILABLE")

        plugin.wait_healthz(health(AuditError("")))
        shown = plugin.cli("status").stdout
        assert "! audit: requests are refused: the audit record was not" in shown
        assert "or what reads stdout if audit.stdout is true" in shown
        assert 1 == metrics(plugin)["hsm_kms_audit_failing"]
        reading = threading.Thread(target=out.read)
        reading.start()
        plugin.wait_healthz("ok")
        assert plugin.encrypt(b"d" * 32).key_id
        assert 0 == plugin.stop()
        reading.join()
