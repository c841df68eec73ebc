"""Test that `check` runs every step it can, and what scripts read of it."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from hsm_kms.cli.check import encryption_config, node, token
from hsm_kms.ipc.values import KeyRef
from tests.cli.waiting import run_until_waiting
from tests.harness.administrator import Generate, change
from tests.harness.processes import stop
from tests.harness.spy import Spy
from tests.harness.wait import wait_for

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"
STEPS = ("configuration", *node.STEPS, *token.STEPS)
AFTER_LOGIN = ["keys", "policy", "mechanism"]


def outcomes(plugin, *options):
    """Return the exit code, and the outcome of each step that has one."""
    ended = plugin.cli("check", "-o", "json", *options)
    report = json.loads(ended.stdout)
    assert ("", report["ok"]) == (ended.stderr, ended.returncode == 0)
    found = {}
    for each in report["checks"]:
        found.setdefault(each["outcome"], {})[each["id"]] = each["text"]
    return ended.returncode, found


def test_json(make_plugin, hsm):
    """If all is well, JSON has one finding or more of each step, in order."""
    plugin = make_plugin(hsm)
    plugin.config["audit"] = {"file": str(plugin.directory / "audit.jsonl")}
    plugin.write_config()
    ended = plugin.cli("check", "-o", "json")
    report = json.loads(ended.stdout)
    checks = report.pop("checks")

    assert (0, {"ok": True}) == (ended.returncode, report)
    assert {("id", "outcome", "text", "hint")} == {tuple(each) for each in checks}
    assert {"ok"} == {each["outcome"] for each in checks}
    assert STEPS == tuple(dict.fromkeys(each["id"] for each in checks))


def test_slow_token(make_plugin, hsm, shim):
    """The canary passes if each of its operations takes less than call_timeout."""
    plugin = make_plugin(hsm)
    plugin.merge("token", {"module": str(shim.module), "call_timeout": "2s"})
    plugin.config["token"]["env"] |= shim.env
    plugin.write_config()
    shim.set("C_Encrypt len=32 sleep=1200", "C_Decrypt len=48 sleep=1200")
    code, found = outcomes(plugin)

    assert (0, ["ok"]) == (code, [*found])


def test_ids_are_documented():
    """docs/commands.md lists each id of `check`, in order."""
    section = DOCUMENT.read_text().partition("## What `check` looks at")[2]
    rows = re.findall(
        r"^\| `([a-z-]+)` \|", section.partition("\n## ")[0], re.MULTILINE
    )

    steps = ["configuration", "user", *STEPS[1:], token.HEALTH_KEY]
    assert [*steps, *encryption_config.STEPS] == rows


def test_without_pin(make_plugin, hsm, directory):
    """Without a PIN file the token is found and the sessions are counted."""
    plugin = make_plugin(hsm, token={"pin_file": str(directory / "none")})
    code, found = outcomes(plugin)

    assert 1 == code
    assert ["pin"] == [*found["failed"]]
    assert (
        dict.fromkeys(["login"], "the check `pin` failed")
        | dict.fromkeys(AFTER_LOGIN, "the check `login` failed")
        == found["skipped"]
    )
    assert {"token", "sessions", "kms-socket"} <= {*found["ok"]}


def test_without_state_directory(make_plugin, hsm):
    """Without a state directory no PIN is tried; everything else is."""
    plugin = make_plugin(hsm)
    plugin.state_dir.rmdir()
    code, found = outcomes(plugin)

    assert (1, ["state-directory"]) == (code, [*found["failed"]])
    assert {"login", *AFTER_LOGIN} <= {*found["skipped"]}
    assert {"token", "sessions", "module"} <= {*found["ok"]}


def test_without_module(make_plugin, hsm, directory):
    """Without a module nothing of the token can be tried."""
    plugin = make_plugin(hsm, token={"module": str(directory / "none.so")})
    code, found = outcomes(plugin)

    assert (1, ["module"]) == (code, [*found["failed"]])
    assert dict.fromkeys(token.STEPS, "the check `module` failed") == found["skipped"]
    assert {"pin", "kms-socket", "http-port", "admin-socket"} <= {*found["ok"]}


def test_a_module_that_others_can_change(make_plugin, hsm):
    """A module is not loaded if another user could have changed it."""
    plugin = make_plugin(hsm)
    plugin.directory.chmod(0o777)
    code, found = outcomes(plugin)

    assert (1, {"permissions", "kms-socket"}) == (code, {*found["failed"]})
    assert {*token.STEPS} == {*found["skipped"]}


def test_other_token(make_plugin, hsm):
    """If no token matches, the steps after it are skipped."""
    code, found = outcomes(make_plugin(hsm, token={"token_label": "another"}))

    assert (1, ["token"]) == (code, [*found["failed"]])
    assert [*token.STEPS[1:]] == [*found["skipped"]]


def test_no_key(make_plugin, empty_hsm):
    """Without a key there is no policy to check, and no mechanism."""
    code, found = outcomes(make_plugin(empty_hsm))

    assert (1, ["keys"]) == (code, [*found["failed"]])
    skipped = dict.fromkeys(["policy", "mechanism"], "there is no current key")
    assert skipped == found["skipped"]


def test_health_key(make_plugin, hsm):
    """A health key that cannot be used fails, with its cure, and one that can is ok."""
    plugin = make_plugin(hsm, health={"key": "health"})
    code, found = outcomes(plugin)
    assert (1, [token.HEALTH_KEY]) == (code, [*found["failed"]])
    assert "no AES key labelled 'health'" in found["failed"][token.HEALTH_KEY]

    change(hsm, Generate(KeyRef("health", b"\x0e")))
    code, found = outcomes(plugin)
    expected = "health key labelled 'health': encrypted and decrypted once"
    assert (0, expected) == (code, found["ok"][token.HEALTH_KEY])


def test_health_key_without_token(make_plugin, hsm):
    """The health key is skipped with the other steps that need the token."""
    plugin = make_plugin(hsm, health={"key": "health"})
    code, found = outcomes(plugin, "--offline")

    assert (0, "--offline") == (code, found["skipped"][token.HEALTH_KEY])


def test_text_of_skipped(make_plugin, hsm, directory):
    """Steps that are skipped for one reason share a line, and are counted."""
    plugin = make_plugin(hsm, token={"module": str(directory / "none.so")})
    lines = plugin.cli("check").stdout.splitlines()

    assert f"- {', '.join(token.STEPS)}: skipped: the check `module` failed" in lines
    assert "1 of 8 checks failed, 6 skipped" == lines[-1]


@pytest.mark.parametrize("output", ["text", "json"])
def test_wait(make_plugin, hsm, output):
    """--wait tries again until all is well, and prints the last attempt alone."""
    plugin = make_plugin(hsm)
    plugin.state_dir.rmdir()
    ended = run_until_waiting(
        lambda: plugin.state_dir.mkdir(0o700),
        *("check", "--config", plugin.config_file, "--wait", "5m", "-o", output),
    )

    assert 0 == ended.code
    assert f"waiting: state directory: the state directory {plugin.state_dir}" in (
        ended.err
    )
    assert 1 == ended.err.count("waiting: ")
    assert 1 == ended.out.count("state directory")


def test_wait_in_vain(make_plugin, hsm):
    """After the time given, --wait prints what still fails."""
    plugin = make_plugin(hsm)
    plugin.state_dir.rmdir()
    ended = plugin.cli("check", "--offline", "--wait", "1s")

    assert 1 == ended.returncode
    assert f"✗ state directory: the state directory {plugin.state_dir}" in ended.stdout
    assert ended.stdout.endswith("1 of 7 checks failed, 7 skipped\n")


def test_wait_tries_a_wrong_pin_once(make_plugin, hsm, directory):
    """--wait does not try a PIN again that the token has rejected."""
    spy = Spy(directory / "spy.log")
    pin = directory / "wrong"
    pin.touch(0o600)
    pin.write_text("a-wrong-pin")
    token = {"module": spy.module, "env": hsm.env | spy.env, "pin_file": str(pin)}
    ended = make_plugin(hsm, token=token).cli("check", "--wait", "8s")

    assert 1 == ended.returncode
    assert "✗ PIN: " in ended.stdout
    assert 1 == spy.count("C_Login")  # of about four attempts


def test_stopped_server(plugin):
    """A server that is stopped does not count as one that serves."""
    pid = plugin.process.pid
    stop(pid)
    try:
        checked = plugin.cli("check", "--offline")
        status = plugin.cli("status")
    finally:
        plugin.process.send_signal(signal.SIGCONT)
    wait_for(lambda: plugin.cli("check", "--offline").returncode == 0)

    cause = (
        f"the server on {plugin.socket} (process {pid}) does not answer: it is stopped"
    )
    assert 1 == checked.returncode
    assert f"✗ KMS socket: {cause}\n  hint: run: kill -CONT {pid}\n" in checked.stdout
    assert f"hsm-kms: {cause}\nhint: run: kill -CONT {pid}\n" == status.stderr


def test_status_of_the_admin_socket(plugin):
    """`status` says that the admin socket is not the KMS socket."""
    admin = plugin.config["http"]["admin_socket"]
    ended = plugin.cli("status", "--socket", admin)

    assert 1 == ended.returncode
    assert f"hsm-kms: {admin} belongs to an HTTP server, and not to a KMS plugin\n" in (
        ended.stderr
    )
    assert "hint: give the KMS socket, which listen.socket names; " in ended.stderr
