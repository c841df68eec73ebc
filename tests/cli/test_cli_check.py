"""Test `check`, and the faults of a configuration file that end `serve`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.harness.command_line import run
from tests.harness.softhsm import softhsm_module
from tests.harness.spy import Spy

CANARY = "8467-A-Secret"
GOOD = f"""\
version: 1
token:
  module: /lib/{CANARY}.so
  token_label: {CANARY}
  pin_file: /etc/{CANARY}
"""
MANY_FAULTS = f"""\
{GOOD}  slot: 1
  slot: 2
  user_pin: {CANARY}
listen: {{socket: 'unix://{CANARY}/kms.sock'}}
keys: {{label: 5}}
"""

# name: the file · what is said of it, a line each
FAULTY = {
    "no YAML": ("version: [1\n", ["not valid YAML at line 2, column 1"]),
    "a list": (
        f"- {CANARY}\n",
        ["must be a YAML mapping that begins with version: 1"],
    ),
    "from the future": (
        GOOD.replace("1", "2", 1) + f"unheard_of: {CANARY}\n",
        ["version: must be 1; a later version needs a later hsm-kms"],
    ),
    "no selector": (
        GOOD.replace("  token_label", "  # token_label"),
        ["token: must have exactly one of "],
    ),
    "all at once": (
        MANY_FAULTS,
        [
            "token.slot: duplicate key on lines 6 and 7",
            "token: must have exactly one of ",
            "listen.socket: ",
            "token: unknown key; put the PIN into the file that pin_file names",
            "keys.label: must be text; quote numbers, yes and no",
        ],
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_serve_refuses(directory, name):
    """`serve` exits with 2, prints one line per fault, and quotes no value."""
    text, faults = FAULTY[name]
    path = directory / "config.yaml"
    path.write_text(text)
    result = run("serve", "--config", str(path))
    lines = result.stderr.splitlines()

    assert 2 == result.returncode
    assert CANARY not in result.stderr + result.stdout
    assert len(faults) == len(lines), lines
    for fault in faults:
        assert any(line.startswith(f"hsm-kms: {path}: {fault}") for line in lines), (
            lines
        )


@pytest.mark.parametrize("command", [["serve"], ["check"], ["config", "show"]])
def test_no_file(directory, command):
    """A missing configuration file ends `serve` with exit code 2, naming its path."""
    path = directory / "none.yaml"
    result = run(*command, "--config", str(path))

    assert 2 == result.returncode
    assert result.stderr == (
        f"hsm-kms: {path} cannot be read: No such file or directory\n"
    )


def test_check(make_plugin, hsm):
    """If all checks pass, each line has its mark, in the order of the checks."""
    plugin = make_plugin(hsm)
    result = plugin.cli("check")
    digest = hashlib.sha256(Path(softhsm_module()).read_bytes()).hexdigest()
    wanted = [
        f"configuration {plugin.config_file}",
        "no other user can change configuration, module, PIN file or state",
        f"state directory {plugin.state_dir}",
        f"module {softhsm_module()}, SHA-256 {digest}",
        f"PIN file {plugin.config['token']['pin_file']}",
        f"KMS socket {plugin.socket}",
        "HTTP 127.0.0.1:0",
        f"HTTP {plugin.directory}/admin.sock",
        r"token 'test', serial [0-9a-f]{16}, slot \d+",
        "login as user",
        r"sessions 5 x 2 workers .* = 11; the token reports no session limit",
        "key [a-z2-7]{26}, label 'k8s-kek', current",
        "policy: AES-256, sensitive, not extractable, encrypt and decrypt",
        "mechanism .*: encrypted and decrypted once",
    ]

    lines = result.stdout.splitlines()
    assert (0, "") == (result.returncode, result.stderr)
    for expected, line in zip(wanted, lines[: len(wanted)], strict=True):
        assert re.fullmatch(f"✓ {expected}", line)
    assert (
        "What each wrapping mode gives up compared to `token` (docs/threat-model.md):"
        == (lines[len(wanted)])
    )


def test_check_what_others_can_change(make_plugin, hsm):
    """A file or directory that other users can write to fails, with path and cure."""
    plugin = make_plugin(hsm)
    plugin.directory.chmod(0o777)
    result = plugin.cli("check", "--offline")

    assert (1, "") == (result.returncode, result.stderr)
    assert (
        f"✗ configuration: every user can write to {plugin.directory}\n"
        f"  hint: run chmod o-w {plugin.directory}\n"
    ) in result.stdout


def test_check_beside_a_server(plugin):
    """`check` leaves a running server as it is."""
    before = plugin.worker_pids()
    result = plugin.cli("check")

    assert 0 == result.returncode
    assert before == plugin.worker_pids()
    assert "ok" == plugin.status().healthz


def test_offline(make_plugin, hsm, directory):
    """`check --offline` loads no module and asks no token."""
    spy = Spy(directory / "spy.log")
    plugin = make_plugin(hsm, token={"module": spy.module, "env": hsm.env | spy.env})
    hsm.take_away()
    offline = plugin.cli("check", "--offline")
    calls = spy.count(r"C_\w+")
    online = plugin.cli("check")

    assert (0, 0) == (offline.returncode, calls)
    assert [*"✓✓✓✓✓✓✓✓-W"] == [
        line[0] for line in offline.stdout.splitlines() if line[0] != " "
    ]
    assert 1 == online.returncode
    assert 0 < spy.count(r"C_\w+")


# what is configured · lines of the table, in part
TRADEOFFS = {
    "the token alone": (
        {},
        [
            [
                "v2",
                "token",
                "the DEKs in requests",
                "nothing",
                "every DEK",
                "2 token calls",
            ],
            [
                "v1",
                "token",
                "the DEKs in requests",
                "nothing",
                "every DEK",
                "1 token call",
            ],
        ],
    ),
    "defaults": (
        {"apis": {"v1": {"enabled": True}}},
        [
            ["v2", "token", "the DEKs in requests"],
            [
                "v1",
                "software",
                "every DEK wrapped",
                "Encrypt for 1d",
                "every local KEK",
            ],
        ],
    ),
    "v2 alone, without read-back": (
        {
            "apis": {"v2": {"wrapping": "fallback"}, "v1": {"enabled": False}},
            "local_keys": {"max_offline": "90m", "verify_wraps": False},
        },
        [["v2", "fallback", "every DEK wrapped", "Encrypt for 90m", "1 token call"]],
    ),
    "no outage": (
        {"apis": {"v2": {"wrapping": "software"}}, "local_keys": {"max_offline": "0s"}},
        [
            ["v2", "software", "Decrypt with local", "token calls per local"],
            ["v1", "token", "the DEKs in requests"],
        ],
    ),
}


@pytest.mark.parametrize("name", TRADEOFFS)
def test_tradeoff(make_plugin, hsm, monkeypatch, name):
    """`check` ends with a row for each enabled API and its wrapping mode."""
    monkeypatch.setenv("COLUMNS", "200")
    sections, wanted = TRADEOFFS[name]
    shown = make_plugin(hsm, **sections).cli("check", "--offline").stdout
    table = shown.partition("What each wrapping mode gives up")[2].splitlines()[1:]
    rows = [line for line in table if re.match("  v[12]", line)]
    mixed = {"token"} < {row[1] for row in wanted}

    assert re.match("  API  WRAPPING  A MEMORY DUMP", table[0])
    for expected, row in zip(wanted, rows, strict=True):
        found = r".*  ".join(map(re.escape, expected))
        assert re.match(f"  {found}", row), row
    assert mixed is table[-1].startswith("A DEK forged with a local KEK of one API")
    assert max(map(len, table)) <= 120


def test_tradeoff_fits_the_terminal(make_plugin, hsm, monkeypatch):
    """The table is never wider than the terminal, and loses no word."""
    plugin = make_plugin(hsm, apis={"v2": {"wrapping": "fallback"}})
    words = {}
    for columns in (200, 112, 100, 91, 80, 40, 1):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = plugin.cli("check", "--offline").stdout
        table = shown[shown.index("What each wrapping mode") :].splitlines()
        assert max(map(len, table)) <= max(columns, 40)
        words[columns] = sorted(re.findall(r"\w+", " ".join(table).lower()))
    assert words[200] == words[112] == words[91]
    assert {*words[200]} == {*words[80]} == {*words[1]}


def test_offline_finds_faults(make_plugin, hsm, directory):
    """`check --offline` finds every fault that is visible without the token.

    Then no table follows, unless it is asked for, and the last line counts.
    """
    token = {"module": str(directory / "no.so"), "pin_file": str(directory / "no-pin")}
    plugin = make_plugin(hsm, token=token, state_dir="/proc/self/none")
    result = plugin.cli("check", "--offline")
    asked = plugin.cli("check", "--wrapping")
    failed = [line for line in result.stdout.splitlines() if line[0] == "✗"]

    assert (1, 1) == (result.returncode, asked.returncode)
    assert ["✗ state", "✗ module:", "✗ PIN:"] == [
        " ".join(line.split()[:2]) for line in failed
    ]
    assert result.stdout.endswith("\n3 of 8 checks failed, 6 skipped\n")
    assert "WRAPPING" not in result.stdout
    assert "WRAPPING" in asked.stdout.upper().replace("--WRAPPING", "")
    assert asked.stdout.endswith("\n3 of 8 checks failed, 6 skipped\n")


def test_label_that_no_key_has(make_plugin, hsm):
    """If no key has the configured label, `check` and `keys list` name those there."""
    plugin = make_plugin(hsm, keys={"label": "wrong"})
    cause = "no AES key labelled 'wrong' is on the token; AES keys on it are labelled "
    cure = plugin.hint("correct keys.label, or make one with `hsm-kms keys generate`")
    shown, listed = plugin.cli("check").stdout, plugin.cli("keys", "list").stderr

    assert f"✗ key: {cause}'k8s-kek'\n  hint: {cure}\n" in shown
    assert f"{cause}'k8s-kek'" in listed
    assert cure in listed


def test_session_budget(make_plugin, hsm):
    """`check` adds up the sessions of workers, a spare worker and a command."""
    token = {"workers": 3, "sessions_per_worker": 7}
    result = make_plugin(hsm, token=token).cli("check")

    assert "sessions 8 x 4 workers (one spare) + 1 for a command = 33" in result.stdout
