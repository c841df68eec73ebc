"""Test every command with a stdout that is full, closed, or not UTF-8."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.etcd_cli import OBJECTS
from tests.cli.every_command import LEAVES, SHARED, every_command
from tests.harness.command_line import HSM_KMS, run
from tests.harness.etcd_samples import written
from tests.harness.softhsm import PIN
from tests.harness.wait import patient

FAILING = {"destroy", "verify"}  # nothing is retired, and nothing can be decrypted


@pytest.fixture
def commands(make_plugin, hsm, shared_server, tmp_path):
    """Provide the command line of every command that prints a result."""
    node = make_plugin(hsm, **SHARED)
    node.write_config()
    return every_command(node, shared_server, tmp_path)


@contextlib.contextmanager
def closed_pipe():
    """Provide a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        yield pipe


def test_unwritable(commands):
    """Every command says that its result cannot be written, unless nobody reads it."""
    seen = set()
    for number, arguments in enumerate(commands):
        seen |= {path for path in LEAVES if path == arguments[: len(path)]}
        full = number % 2
        with Path("/dev/full").open("w") if full else closed_pipe() as stdout:
            done = run(*arguments, stdout=stdout)
        if "destroy" in arguments:
            assert (1, True) == (done.returncode, "24 hours" in done.stderr)
            continue
        assert (1 if full else 141) == done.returncode, (arguments, done)
        cause = "hsm-kms: cannot write the output: No space left on device\n"
        assert full == done.stderr.endswith(cause), done
    assert LEAVES - {("serve",)} == seen


def test_ascii(make_plugin, hsm, shared_server, tmp_path):
    """Where stdout is not UTF-8, marks are ASCII, and what else it lacks is escaped."""
    odd = tmp_path / "\xfc"
    odd.mkdir()
    node = make_plugin(hsm, **SHARED)
    pin_file = odd / "pin"
    pin_file.write_text(PIN)
    pin_file.chmod(0o600)
    node.config["token"]["pin_file"] = str(pin_file)
    node.write_config()
    text = ""
    for arguments in every_command(node, shared_server, odd):
        done = run(*arguments, encoding="ascii")
        assert done.returncode == (arguments[1] in FAILING), (arguments, done)
        text += done.stdout

    assert f"+ configuration {node.config_file}\n" in text
    assert f"+ PIN file {tmp_path}/\\xfc/pin\n" in text
    assert f'pin_file: "{tmp_path}/\\xFC/pin"\n' in text  # still YAML


def test_paths_that_are_no_text():
    """A path with bytes that are not UTF-8 is shown escaped."""
    done = run("config", "show", "--config", os.fsdecode(b"/nowhere/\xff"))

    assert 2 == done.returncode
    assert "/nowhere/\\udcff" in done.stderr


@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        (">/dev/full", 1),
        (">/dev/full 2>/dev/full", 1),
        (">&-", 0),
        ("<&- >&- 2>&-", 0),
        (">&{pipe} 2>&{pipe}", 141),
    ],
)
def test_streams_of_a_process(redirected, code, tmp_path):
    """A stream that is closed or full causes no traceback, and the right exit code."""
    dump = written(tmp_path / "dump.json", OBJECTS)
    command = [*HSM_KMS, "etcd", "scan", "--from-json", str(dump)]
    with closed_pipe() as pipe:
        number = pipe.fileno()
        shell = f'"$@" {redirected.format(pipe=number)}'
        done = spawned("bash", "-c", shell, "bash", *command, pass_fds=[number])

    assert code == done.returncode, done
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {},
    ],
    ids=["C", "latin-1", "empty"],
)
def test_bare_environment(env, shared_server):
    """No locale, home directory, PATH or terminal type is needed."""
    command = [*HSM_KMS, "check", "--config", str(shared_server.config_file)]
    done = spawned("env", "-i", *(f"{k}={v}" for k, v in env.items()), *command)

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("\u2713" if not env else "+")


def spawned(*command, **options):
    """Run a command in a process of its own."""
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(60),
        **options,
    )
