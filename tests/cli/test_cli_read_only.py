"""Test commands on a token whose files nobody can change."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from tests.harness.command_line import HSM_KMS
from tests.harness.processes import in_namespace, namespace_prefix
from tests.harness.troubleshooting import is_explained
from tests.harness.wait import patient


@pytest.fixture
def run(make_plugin, hsm):
    """Run a command in a mount namespace in which the token is read-only."""
    node = make_plugin(hsm, token={"shared": True})
    node.write_config()
    config = ("--config", str(node.config_file))
    prefix = namespace_prefix()
    if prefix is None or os.geteuid() != 0:
        pytest.skip("no mount namespace can be made here")
    at = shlex.quote(str(hsm.tokens))
    script = f"mount --bind {at} {at} && mount -o remount,bind,ro {at}"

    def ended(*arguments):
        return subprocess.run(
            in_namespace(prefix, script, *HSM_KMS, *arguments, *config),
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(60),
        )

    return ended


def test_read_only(run):
    """A token that cannot be changed serves; what would change it says why not."""
    for command in (("check",), ("keys", "list"), ("token", "retry-pin")):
        done = run(*command)
        assert (0, "") == (done.returncode, done.stderr), command
    for command in (("keys", "rotate"), ("keys", "generate", "--another")):
        done = run(*command)
        assert (1, "") == (done.returncode, done.stdout), command
        assert is_explained(done.stderr.splitlines()[0]), command
        assert "hint: see whether the token can be changed: its files " in done.stderr
