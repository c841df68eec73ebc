"""Test that output of a module or the loader reaches no output of a command."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.every_command import COMMANDS, LEAVES, every_command
from tests.harness import command_line
from tests.harness.noise import LINES, noisy_env, noisy_module

FAILING = {("keys", "destroy"), ("etcd", "verify")}  # nothing is retired for a day
JSON = {
    path
    for path, command in COMMANDS.items()
    if any("--output" in param.opts for param in command.params)
}


@pytest.fixture
def noisy(make_plugin, hsm):
    """Provide a configuration whose module prints to stdout and stderr, no server."""
    token = {
        "module": str(noisy_module()),
        "env": hsm.env | noisy_env(),
        "shared": True,
    }
    plugin = make_plugin(hsm, token=token)
    plugin.write_config()
    return plugin


def assert_quiet(done, code=0):
    """Assert how the command ended, and that it printed nothing of module or loader."""
    assert code == done.returncode, done.stderr
    for words in (*LINES, "worker stderr", "calling init"):
        assert words not in done.stdout
        assert words not in done.stderr


@pytest.mark.parametrize("spawn", [False, True], ids=["here", "spawned"])
def test_json_stays_json(noisy, spawn):
    """`keys list -o json` prints one JSON document and nothing else."""
    done = noisy.cli("keys", "list", "-o", "json", spawn=spawn)
    assert_quiet(done)
    assert "" == done.stderr
    assert [{"k8s-kek"}] == [{key["label"]} for key in json.loads(done.stdout)]


@pytest.mark.parametrize("output", ["text", "json"])
def test_each_command_prints_its_own_words(noisy, shared_server, tmp_path, output):
    """No command prints anything of the module, and its JSON is one document."""
    seen = set()
    for arguments in every_command(noisy, shared_server, tmp_path):
        (path,) = {path for path in LEAVES if path == arguments[: len(path)]}
        seen.add(path)
        more = ("-o", "json") if output == "json" and path in JSON else ()
        done = command_line.run(*arguments, *more)
        assert_quiet(done, path in FAILING)
        if more and done.stdout:
            json.loads(done.stdout)
    assert LEAVES - {("serve",)} == seen


def test_a_server_logs_what_a_module_prints(noisy):
    """What a module prints to a server's stderr becomes events of its log."""
    noisy.start()
    noisy.wait_healthz("ok")
    noisy.stop()
    assert noisy.events("worker stderr")
    for line in noisy.log().splitlines():
        assert "event" in json.loads(line)


@pytest.mark.skipif(os.geteuid() != 0, reason="others get an error")
def test_logging_of_a_command_goes_to_stderr(noisy):
    """A warning that a command logs leaves its JSON alone."""
    noisy.state_dir.chmod(0o500)
    done = noisy.cli("keys", "list", "-o", "json")
    assert json.loads(done.stdout)


def test_token_list_takes_the_environment(hsm):
    """`token list --module` finds the tokens that --env names, and no others."""
    module = ("--module", str(noisy_module()))
    env = [f"--env={name}={value}" for name, value in (hsm.env | noisy_env()).items()]
    done = command_line.run("token", "list", *module, *env, "-o", "json")
    assert "test" in [token["label"] for token in json.loads(done.stdout)]

    wrong = command_line.run("token", "list", *module, "--env", "NAME")
    assert 2 == wrong.returncode
    assert "must be NAME=VALUE" in wrong.stderr
