"""The screen of `status`: what it shows, what it finds, and where it has colours."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hsm_kms.cli.status.findings import ASKED_SECONDS, V1_VERSION, Finding, findings
from hsm_kms.cli.status.screen import show
from hsm_kms.clock import now, when
from tests.harness.command_line import HSM_KMS
from tests.harness.pages import walk
from tests.harness.plugin import code_of
from tests.harness.terminals import InProcess, read_all
from tests.harness.wait import wait_for

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"
ANSI = "\x1b["
KEY = {
    "key_id": "k" * 26,
    "state": "current",
    "activation": 0,
    "current_from": None,
    "doubt": None,
    "policy_violations": [],
}


def server(**changes):
    """Return /status of a server that is well, apart from these fields."""
    return {
        "started": when(now() - 9000),
        "last_status": when(now()),
        "breaker": "closed",
        "token": {"slow": False},
        "workers": {"unkillable": []},
        "canary": {"health_key": None},
        "pin": "proven",
        "keys": [KEY],
        "unidentified_keys": [],
        "http": [{"address": "127.0.0.1:9462", "error": None}],
        "config": {"in_force": True, "since": None, "error": None},
    } | changes


def ago(seconds):
    """Return a time in the past, as /status has it."""
    return when(now() - seconds)


CASES = {
    "breaker": {"breaker": "open"},
    "token-slow": {"token": {"slow": True}},
    "unkillable": {"workers": {"unkillable": [7, 8]}},
    "health-key": {"canary": {"health_key": {"label": "h", "error": "it is gone"}}},
    "pin": {"pin": "rejected"},
    "key-policy": {"keys": [KEY | {"policy_violations": ["CKA_EXTRACTABLE is True"]}]},
    "pending-key": {"keys": [KEY | {"state": "pending", "doubt": "it is older"}]},
    "foreign-key": {"keys": [KEY | {"state": "foreign"}]},
    "unidentified-key": {"unidentified_keys": [{"cka_id": "", "reason": "no right"}]},
    "not-asked": {"last_status": ago(ASKED_SECONDS + 9)},
    "http": {"http": [{"address": "127.0.0.1:1", "error": "Address in use"}]},
    "audit": {"audit": {"error": "No space left on device", "refuses": True}},
    "config": {"config": {"in_force": False, "since": ago(9), "error": "line 3"}},
}


@pytest.mark.parametrize("name", CASES)
def test_findings(name):
    """Each thing that must be mended is found, once, and with nothing else."""
    assert [name] == [each.id for each in findings(server(**CASES[name]), "v2")]


def test_nothing_found():
    """A server that is well has no finding, nor one that was never asked but is new."""
    assert [] == findings(server(), "v2")
    assert [] == findings(server(last_status=None, started=ago(9)), "v2")
    assert [] == findings(server(last_status=None), V1_VERSION)


def test_never_asked():
    """A server that has run for long, and was never asked, says so with the cure."""
    (found,) = findings(server(last_status=None), "v2")

    assert "not-asked" == found.id
    assert "for 2 h, since the server started; it asks once a minute" in found.text
    assert "EncryptionConfiguration" in str(found.hint)


def test_ids_are_documented():
    """docs/commands.md lists each id, in the order of the output."""
    section = DOCUMENT.read_text().partition("## What `status` shows")[2]
    rows = re.findall(
        r"^\| `([a-z-]+)` \|", section.partition("\n## ")[0], re.MULTILINE
    )

    assert [*CASES] == rows


def test_page(make_plugin, hsm):
    """`status` prints the screen that the page shows."""
    plugin = make_plugin(
        hsm,
        apis={"v1": {"enabled": True, "wrapping": "software"}},
        token={"workers": 2, "shared": True},
    )
    assert 0 == plugin.cli("keys", "generate", "--another").returncode
    plugin.start().wait_healthz("ok")
    # Until there is a local KEK, the token answers v1, too.
    wait_for(lambda: json.loads(plugin.page("/status")[1])["local_keks"]["cached"])
    assert "OK" == code_of(lambda: plugin.v1_encrypt(b"d"))
    plugin.encrypt(b"d" * 32)
    wait_for(lambda: "8 idle of 8" in plugin.cli("status").stdout)
    with walk(
        InProcess(plugin.config_file),
        "docs/commands.md",
        "What `status` shows",
        names={},
    ) as page:
        page.run("hsm-kms status")


def test_path_with_a_percent_sign(make_plugin, hsm, directory):
    """The socket is found also where its path reads as a URI with an escape."""
    (directory / "50%25").mkdir()
    plugin = make_plugin(hsm)
    plugin.merge("listen", {"socket": str(directory / "50%25" / "kms.sock")})
    plugin.write_config()
    plugin.start(listening=False)

    wait_for(lambda: 0 == plugin.cli("status").returncode)


def test_commands_name_the_configuration(monkeypatch, capsys):
    """A command that the screen names works as it is, also without the default file."""
    monkeypatch.setattr(sys, "argv", ["hsm-kms", "status", "--config", "/a b"])
    page = server(state="failed", since=ago(9), cause="c", cure="run `hsm-kms check`")
    hint = Finding("pin", "pin", "rejected", "run `hsm-kms check`")
    page["canary"] |= {"last_success": None, "last_failure": None}
    page["workers"] |= {"ready": 0}
    page |= {"key_id": "", "sessions": {"idle": 0, "held": 0, "waiting": 0}}
    show({"healthz": "c"}, page | {"version": "0"}, [hint])
    printed = capsys.readouterr().out

    assert "cure: run `hsm-kms check --config '/a b'`\n" in printed
    assert "hint: run `hsm-kms check --config '/a b'`\n" in printed


def test_cause_cure_and_last_failure(make_plugin, hsm):
    """An outage is shown with cause and cure, and remembered with its time."""
    plugin = make_plugin(hsm).start()
    plugin.wait_healthz("ok")
    hsm.take_away()
    wait_for(lambda: code_of(lambda: plugin.encrypt(b"d")) != "OK")
    wait_for(lambda: plugin.healthz() != "ok", 60)
    shown = plugin.cli("status")
    hsm.put_back()
    plugin.wait_healthz("ok", 60)
    well = plugin.cli("status").stdout

    assert 1 == shown.returncode
    assert re.search(
        r"^state: failed for \d+ s, since \S+Z\ncause: .+\ncure: .+\n",
        shown.stdout,
        re.MULTILINE,
    )
    assert re.search(r"^last failure: \d+ \w+ ago: .+$", well, re.MULTILINE)
    assert re.search(r"^last failed request: \d+ \w+ ago: .+$", well, re.MULTILINE)
    assert "cause:" not in well


def on_terminal(plugin, command, **env):
    """Run a command on a terminal, and return what it prints."""
    outer, inner = pty.openpty()
    line = [*HSM_KMS, *command, "--config", str(plugin.config_file)]
    environment = {**os.environ, "TERM": "xterm-256color", **env}
    with subprocess.Popen(
        line, stdin=inner, stdout=inner, stderr=inner, env=environment
    ) as process:
        os.close(inner)
        printed = read_all(outer)
    assert 0 == process.returncode, printed
    return printed


@pytest.mark.parametrize("command", [("status",), ("check", "--offline")])
def test_colours(shared_server, command):
    """Colours are for a terminal, unless NO_COLOR or TERM=dumb forbids them."""
    os.environ.pop("NO_COLOR", None)
    coloured = on_terminal(shared_server, command)
    plain = shared_server.cli(*command).stdout

    assert ANSI in coloured
    assert ANSI not in plain
    assert ANSI in on_terminal(shared_server, command, NO_COLOR="")
    assert ANSI not in on_terminal(shared_server, command, NO_COLOR="1")
    assert ANSI not in on_terminal(shared_server, command, TERM="dumb")
