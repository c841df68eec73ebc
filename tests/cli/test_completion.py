"""Test what the shells complete, and that it takes no more than the definitions."""

from __future__ import annotations

import os
import re
import shlex
import subprocess

import pytest

from tests.harness.command_line import HSM_KMS, PYTHON, run
from tests.harness.wait import patient

# What was typed, the last word still incomplete · what follows, or some of it
TYPED = {
    "hsm-kms sta": {"status"},
    "hsm-kms keys re": {"retire"},
    "hsm-kms keys rotate --acti": {"--activate-in"},
    "hsm-kms status -o ": {"text", "json"},
    "hsm-kms completion ": {"bash", "fish", "zsh"},
    "hsm-kms nothing-like-this --": {"--help", "--version"},
}
SHELLS = ("bash", "zsh", "fish")
# None of these is needed to know what can be typed.
HEAVY = {"grpc", "pkcs11", "cryptography", "prometheus_client", "structlog"}


def asked(typed):
    """Return the variables by which bash asks for completions."""
    return {
        "_HSM_KMS_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(f"{typed}|".split()) - 1),
    }


@pytest.mark.parametrize("typed", TYPED)
def test_completions(typed):
    """Commands, options and values are completed, without any configuration."""
    ended = run(env=asked(typed))

    assert (0, "") == (ended.returncode, ended.stderr)
    assert TYPED[typed] == {
        line.partition(",")[2] for line in ended.stdout.splitlines()
    } & (TYPED[typed] | {"keys", "serve"})


def imported(typed):
    """Return the top-level packages that a completion imports in its own process."""
    ended = subprocess.run(
        [PYTHON, "-X", "importtime", *HSM_KMS[1:]],
        env=os.environ | asked(typed),
        check=True,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    return set(re.findall(r"\| +(\w+)$", ended.stderr, re.MULTILINE))


def test_commands_import_nothing():
    """The names of the commands are known without importing one of them."""
    assert set() == imported("hsm-kms ") & {*HEAVY, "asyncio", "pydantic", "yaml"}
    assert set() == imported("hsm-kms keys ") & {*HEAVY, "asyncio", "pydantic", "yaml"}


@pytest.mark.parametrize("command", ["serve", "check", "keys rotate", "etcd verify"])
def test_options_import_little(command):
    """Options are known without PKCS#11, gRPC, or what else takes long to import."""
    assert set() == imported(f"hsm-kms {command} --") & HEAVY


@pytest.mark.parametrize("shell", SHELLS)
def test_script(shell):
    """`completion` prints a script that names the program and its variable."""
    ended = run("completion", shell)

    assert (0, "") == (ended.returncode, ended.stderr)
    assert f"_HSM_KMS_COMPLETE={shell}_complete" in ended.stdout
    assert "hsm-kms" in ended.stdout


def test_bash(tmp_path):
    """A real bash that has read the script completes a command."""
    program = tmp_path / "hsm-kms"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(HSM_KMS)} "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(run("completion", "bash").stdout)
    lines = [
        f"source {script}",
        "COMP_WORDS=(hsm-kms keys re)",
        "COMP_CWORD=2",
        "_hsm_kms_completion hsm-kms",
        'echo "${COMPREPLY[@]}"',
    ]
    ended = subprocess.run(
        ["bash", "--norc", "-euc", "\n".join(lines)],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )

    assert ("retire\n", "") == (ended.stdout, ended.stderr)


def test_an_unknown_instruction():
    """A value of the variable that no script sets prints nothing."""
    for instruction in ("bash", "powershell_complete", "bash_other"):
        ended = run(env={"_HSM_KMS_COMPLETE": instruction})
        assert (2, "") == (ended.returncode, ended.stdout)
