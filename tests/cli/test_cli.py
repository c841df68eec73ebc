"""Test the command line: the sessions in tests/cli/transcripts, and more."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from hsm_kms import __version__
from hsm_kms.cli import cli
from tests.cli.every_command import GROUPS_TOO
from tests.harness.command_line import HSM_KMS, run
from tests.harness.processes import children_of, command_lines
from tests.harness.softhsm import PIN, softhsm_module
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import patient, wait_for

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
SPAWNED = "usage"  # the transcript whose exit codes are those of a real process
PATTERNS = {
    "KEY_ID": r"[a-z2-7]{26}",
    "CKA_ID CKA_ID": r"CKA_ID 686b6d7301[0-9a-f]{32}",
    "<cka_id>": r"686b6d7301[0-9a-f]{32}",
    "<time>": r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "<compact time>": r"20\d{6}T\d{6}Z",
    "<age>": r"(\d+ s|-) *",
    "AGE  ": r"AGE +",  # wider from 10 s on
    "ANYTHING": r".*",
}


def spawn(*arguments, env):
    """Run a command as a shell would, in a process of its own."""
    return subprocess.run(
        [*HSM_KMS, *arguments],
        env=os.environ | env,
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )


def commands_of(text):
    """Yield each command of a transcript: line, stdout, stderr, exit code."""
    for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *lines = block.strip().splitlines()
        code = 0
        if lines and re.fullmatch(r"\[\d\]", lines[-1]):
            code = int(lines.pop()[1:-1])
        err = [line[2:] for line in lines if line.startswith("! ")]
        out = [line for line in lines if not line.startswith("! ")]
        yield command, out, err, code


def pattern(line):
    """Return a line of a transcript as a regular expression."""
    found = re.escape(line)
    for word, expression in PATTERNS.items():
        found = found.replace(re.escape(word), expression)
    return found


def assert_lines(wanted, text):
    """Compare line by line; "..." at the end stands for any more."""
    lines = text.splitlines()
    if wanted[-1:] == ["..."]:
        wanted = wanted[:-1]
        lines = lines[: len(wanted)]
    for expected, line in zip(wanted, lines, strict=True):
        assert re.fullmatch(pattern(expected), line), f"{expected!r}, got {line!r}"


@pytest.fixture
def words(make_plugin, empty_hsm, directory, pin_file):
    """Return what the capital words of a transcript stand for, on an empty token."""
    plugin = make_plugin(empty_hsm)
    no_pin = make_plugin(empty_hsm, token={"pin_file": str(directory / "no-pin")})
    shared = make_plugin(empty_hsm, token={"shared": True})
    return {
        "CONFIG": str(plugin.config_file),
        "SHARED": str(shared.config_file),
        "NO_PIN": str(no_pin.config_file),
        "PIN_FILE": str(pin_file),
        "MODULE": softhsm_module(),
        "DIR": str(directory),
        "VERSION": __version__,
    }


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path, words, empty_hsm):
    """Each command of a transcript prints and exits as the transcript says.

    KEY_1 and so on are the key_ids of the keys it generated.
    """
    for lines in commands_of(path.read_text()):
        command, out, err, code = filled_in(lines, words)
        start = spawn if path.stem == SPAWNED else run
        result = start(*shlex.split(command)[1:], env=empty_hsm.env)
        assert code == result.returncode, (command, result)
        assert_lines(out, result.stdout)
        assert_lines(err, result.stderr)
        for key_id in re.findall("^generated (.{26})", result.stdout, re.MULTILINE):
            words[f"KEY_{len([w for w in words if w.startswith('KEY_')]) + 1}"] = key_id


def filled_in(lines, words):
    """Return a command of a transcript with its capital words replaced."""

    def fill(text):
        return re.sub(r"\b[A-Z_]+\d?\b", lambda m: words.get(m[0], m[0]), text)

    command, out, err, code = lines
    return fill(command), list(map(fill, out)), list(map(fill, err)), code


@pytest.mark.parametrize("path", GROUPS_TOO, ids=" ".join)
def test_help(path, capsys):
    """Every command has a help text that begins with its usage."""
    code = cli.main([*path, "--help"], "hsm-kms", standalone_mode=False)

    assert 0 == code
    usage = " ".join(["Usage: hsm-kms", *path, "[OPTIONS]"])
    text = capsys.readouterr().out
    assert text.startswith(usage)
    assert "\\" not in text, "a mark of click's in a raw docstring"


def test_status(plugin):
    """`status` prints Status as text or JSON, and exits with 0 if healthz is ok."""
    key_id = plugin.status().key_id
    text, by_socket = (
        plugin.cli("status"),
        run("status", "--socket", str(plugin.socket)),
    )
    as_json = plugin.cli("status", "-o", "json")

    assert (0, "") == (text.returncode, text.stderr)
    assert f"healthz: ok\nkey_id: {key_id}\nversion: v2\n" == by_socket.stdout
    assert text.stdout.startswith(by_socket.stdout)  # then the admin socket's part
    for line in ("key age:", "last canary:", "last Status:"):
        assert re.search(rf"^{line} \d+ \w+( ago)?$", text.stdout, re.MULTILINE), line
    state = r"^state: ok for \d+ \w+, since \S+Z$"
    assert re.search(state, text.stdout, re.MULTILINE)
    assert "last failure" not in text.stdout
    answer = {"healthz": "ok", "key_id": key_id, "version": "v2"}
    assert answer.items() <= json.loads(as_json.stdout).items()


def test_status_not_well(make_plugin, hsm):
    """`status` exits with 1 if healthz is an error message, or if Status fails."""
    plugin = make_plugin(hsm, token={"token_label": "another"}).start()
    wait_for(lambda: "no token matches" in plugin.cli("status").stderr)
    never = plugin.cli("status")
    plugin.stop()
    select(plugin, "test")
    plugin.start().wait_healthz("ok")
    plugin.stop()
    select(plugin, "another")
    plugin.start()
    wait_for(lambda: "\nstate: failed" in plugin.cli("status").stdout)
    lost = plugin.cli("status")

    assert (1, "") == (never.returncode, never.stdout)
    line = never.stderr.splitlines()[0]
    assert line.startswith(f"hsm-kms: no Status from {plugin.socket}: UNAVAILABLE: ")
    assert is_explained(line, {str(plugin.socket): "/path/kms.sock"})
    assert "\nhint: the server says: no token matches token_label 'anot" in never.stderr
    assert 1 == lost.returncode
    assert re.match(r"healthz: the .+\nkey_id: [a-z2-7]{26}\n", lost.stdout)
    assert re.search(
        r"^state: failed for \d+ s, since \S+Z$", lost.stdout, re.MULTILINE
    )
    assert "\nlast Status: kube-apiserver has not asked" in lost.stdout


def test_status_of_kms_v1_alone(make_plugin, hsm):
    """With KMS v1 alone, `status` prints what the admin socket says."""
    apis = {"v1": {"enabled": True}, "v2": {"enabled": False}}
    plugin = make_plugin(hsm, apis=apis).start()
    wait_for(lambda: "healthz: ok\n" in plugin.cli("status").stdout)

    shown = plugin.cli("status")
    by_socket = run("status", "--socket", str(plugin.socket))

    assert 0 == shown.returncode
    assert re.match(r"healthz: ok\nkey_id: \S{26}\nversion: v1beta1\n", shown.stdout)
    assert 1 == by_socket.returncode
    assert "the plugin does not serve KMS v2\nhint: to try KMS v1, run `hsm-kms " in (
        by_socket.stderr
    )


def select(plugin, label):
    """Configure another token."""
    plugin.config["token"] |= {"token_label": label}
    plugin.write_config()


def test_keys_json(make_plugin, hsm):
    """`keys list -o json` has these members, of these types, and no others."""
    (key,) = json.loads(make_plugin(hsm).cli("keys", "list", "-o", "json").stdout)

    assert {name: type(value).__name__ for name, value in key.items()} == {
        "key_id": "str",
        "state": "str",
        "reason": "str",
        "label": "str",
        "cka_id": "str",
        "activation": "int",
        "activation_time": "str",
        "becomes_current": "NoneType",
        "retired_since": "NoneType",
        "generated_on_token": "bool",
        "cipher": "str",
        "policy_violations": "list",
        "also": "list",
    }
    assert ("current", True, []) == (
        key["state"],
        key["generated_on_token"],
        key["policy_violations"],
    )
    assert int(key["cka_id"][10:26], 16) == key["activation"]


def test_token_list_json(hsm):
    """`token list -o json` describes each token."""
    listed = run(
        "token", "list", "--module", softhsm_module(), "-o", "json", env=hsm.env
    )
    token = json.loads(listed.stdout)[0]

    assert ("test", None) == (token["label"], token["max_sessions"])
    assert "AES_GCM" in token["aes_mechanisms"]
    assert "TOKEN_INITIALIZED" in token["flags"]


def test_pin_prompt(make_plugin, hsm, directory):
    """--pin-prompt asks for the PIN without echo, and puts it into no argument."""
    none = {"pin_file": str(directory / "none")}
    plugin = make_plugin(hsm, token=none)
    outer, inner = pty.openpty()
    command = ["keys", "list", "--pin-prompt", "--config", str(plugin.config_file)]
    process = subprocess.Popen(
        ["setsid", "--ctty", *HSM_KMS, *command],
        stdin=inner,
        stdout=subprocess.PIPE,
        stderr=inner,
    )
    os.close(inner)
    asked = os.read(outer, 1000)
    os.write(outer, f"{PIN}\n".encode())
    seen = ""
    while process.poll() is None:
        seen += "".join(map(command_lines, [process.pid, *children_of(process.pid)]))
    listed, _ = process.communicate()
    os.close(outer)

    assert b"PIN: " == asked
    assert 0 == process.returncode
    assert b"current" in listed
    assert "hsm_kms.worker" in seen
    assert PIN not in seen + listed.decode()


def test_pin_prompt_without_terminal(make_plugin, hsm):
    """--pin-prompt without a terminal and input ends with an error message."""
    result = make_plugin(hsm).cli("keys", "list", "--pin-prompt", spawn=True)

    assert 1 == result.returncode
    assert "Traceback" not in result.stderr
    wanted = (
        "\nhsm-kms: stdin ended before the question was answered\n"
        "hint: give the answer as an option, or on stdin\n"
    )
    assert result.stderr.endswith(wanted)


def test_answers_without_a_terminal(make_plugin, hsm):
    """Without a terminal the PIN is read from stdin; it must be UTF-8."""
    plugin = make_plugin(hsm)
    plugin.write_config()
    wrong, right = (
        subprocess.run(
            [*HSM_KMS, "keys", "list", "--pin-prompt", "--config", plugin.config_file],
            input=answer,
            capture_output=True,
            check=False,
            start_new_session=True,  # without /dev/tty
            timeout=patient(60),
        )
        for answer in (b"\xff\n", f"{PIN}\n".encode())
    )

    assert 1 == wrong.returncode
    assert wrong.stderr.endswith(b"hsm-kms: PIN: the answer is not UTF-8 text\n")
    assert (0, b"PIN: \n") == (right.returncode, right.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "list", "--module", softhsm_module(), "--init-args", "X"),
        (
            "etcd",
            "scan",
            "--endpoints",
            "https://127.0.0.1:1",
            "--tls-server-name",
            "X",
        ),
        ("etcd", "scan", "--endpoints", "127.0.0.1:1", "--user", "X:b"),
        ("etcd", "scan", "--endpoints", "127.0.0.1:1", "--prefix", "X"),
        ("etcd", "show", "X", "--endpoints", "127.0.0.1:1"),
        ("etcd", "scan", "--endpoints", "X"),
        ("migrate", "--kubectl", "X"),
        ("migrate", "--resource", "X"),
        ("keys", "cancel", "X"),
        ("X",),
    ],
    ids=" ".join,
)
def test_arguments_that_are_no_text(arguments):
    """An argument with bytes that are not UTF-8 causes no traceback."""
    given = [os.fsdecode(b"\xff") if each == "X" else each for each in arguments]
    given = [each.replace("X:", os.fsdecode(b"\xff:")) for each in given]

    assert run(*given).returncode in {1, 2}


def test_config_show(make_plugin, hsm):
    """`config show` prints defaults and settings, and hides what may be secret."""
    token = {"init_args": "secret=init", "env": hsm.env | {"VENDOR_PASSWORD": "secret"}}
    shown = make_plugin(hsm, token=token).cli("config", "show")

    assert 0 == shown.returncode
    assert "secret" not in shown.stdout
    assert "VENDOR_PASSWORD: '***'" in shown.stdout
    assert "init_args: '***'" in shown.stdout
    assert "hang_timeout: 30s" in shown.stdout


def test_generate_while_serving(plugin):
    """A second key changes nothing on a running server until keys.current names it."""
    before = plugin.status().key_id
    plugin.cli("keys", "generate", "--another")
    listed = json.loads(plugin.cli("keys", "list", "-o", "json").stdout)

    assert {before: "current"} | {listed[1]["key_id"]: "pending"} == {
        key["key_id"]: key["state"] for key in listed
    }
    assert ("ok", before) == (plugin.healthz(), plugin.status().key_id)
