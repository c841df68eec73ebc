"""Test softhsm/setup.sh as a newcomer runs it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from hsm_kms.config.load import load
from tests.harness import command_line
from tests.harness.command_line import PYTHON
from tests.harness.wait import patient

ROOT = Path(__file__).parents[3]
SETUP = ROOT / "softhsm" / "setup.sh"
COMMAND = Path(PYTHON).parent / "hsm-kms"

# Writes down how it was called, then becomes the real program.
WRAPPER = """#!/bin/sh
printf '%s\\n' "$*" >>"{log}"
exec "{program}" "$@"
"""


def setup(directory, **env):
    return subprocess.run(
        [SETUP, directory],
        env={**os.environ, "HSM_KMS": str(COMMAND), **env},
        capture_output=True,
        text=True,
        timeout=patient(200),
        check=False,
    )


def keys(directory, config="config.yaml"):
    path = directory / config
    listed = command_line.run("keys", "list", "--config", path, "-o", "json")
    assert 0 == listed.returncode, listed.stderr
    return json.loads(listed.stdout)


def snapshot(directory):
    """Return every path below a directory with mode, time of change and content."""
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [directory, *directory.rglob("*")]
    }


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("setup") / "dev"
    ended = setup(directory)
    assert 0 == ended.returncode, ended.stderr
    return directory


def test_configuration_is_complete(made):
    """setup.sh enables both APIs, keeps everything in DIR, and generates one key."""
    config = load(made / "config.yaml")

    assert config.apis.v2.enabled
    assert config.apis.v1.enabled
    assert made / "kms.sock" == config.listen.socket
    assert made / "state" == config.state_dir
    assert made / "pin" == config.token.pin_file
    assert made / "admin.sock" == config.http.admin_socket
    assert config.http.listen is None
    assert 1 == len(keys(made))


def test_encryption_configuration_names_the_socket(made):
    """The EncryptionConfiguration names the socket of the server."""
    tree = yaml.safe_load((made / "encryption-config.yaml").read_text())
    [kms, identity] = tree["resources"][0]["providers"]

    assert f"unix://{made}/kms.sock" == kms["kms"]["endpoint"]
    assert "v2" == kms["kms"]["apiVersion"]
    assert {"identity": {}} == identity


def test_nothing_is_open_to_others(made):
    """Only the owner can read PINs and token data."""
    modes = {path.stat().st_mode & 0o077 for path in [made, *made.rglob("*")]}

    assert {0} == modes


def test_second_run_changes_nothing(made):
    """A second run changes no file and no time, and tries no PIN."""
    before = snapshot(made)
    ended = setup(made)

    assert 0 == ended.returncode
    assert f"setup.sh: {made} is complete; nothing to do\n" == ended.stderr
    assert before == snapshot(made)


def test_no_pin_in_any_argument_list(tmp_path):
    """No PIN is in an argument list, which every user could read."""
    log = tmp_path / "log"
    for name in ["hsm-kms", "python"]:
        wrapper = tmp_path / name
        program = COMMAND.parent / name
        wrapper.write_text(WRAPPER.format(log=log, program=program))
        wrapper.chmod(0o755)
    ended = setup(tmp_path / "dev", HSM_KMS=str(tmp_path / "hsm-kms"))
    called = log.read_text()

    assert 0 == ended.returncode, ended.stderr
    assert "init_token.py" in called
    assert "keys generate" in called
    for pin in ["pin", "so-pin"]:
        assert (tmp_path / "dev" / pin).read_text() not in called


@pytest.mark.parametrize("moments", [[0.005, 0.05, 0.6], [0.02, 0.1], [0.3, 1.0]])
def test_interrupted_run_goes_on_where_it_was(tmp_path, moments):
    """After a kill at any moment, the next run ends with one token and one key.

    SoftHSM itself can leave a damaged token; then the next run says what to do.
    """
    directory = tmp_path / "dev"
    for after in moments:
        run = subprocess.Popen(
            [SETUP, directory],
            env={**os.environ, "HSM_KMS": str(COMMAND)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with run:
            time.sleep(after)
            os.killpg(run.pid, signal.SIGKILL)
    ended = setup(directory)
    if "a token is damaged" in ended.stderr:
        shutil.rmtree(directory)
        ended = setup(directory)

    assert 0 == ended.returncode, ended.stderr
    assert 1 == len(keys(directory))


def test_relative_directory(tmp_path):
    """A relative DIR is below the caller's directory, and may contain blanks.

    The files hold absolute paths.
    """
    subprocess.run(
        [SETUP, "my dev"],
        env={**os.environ, "HSM_KMS": str(COMMAND)},
        cwd=tmp_path,
        capture_output=True,
        timeout=patient(200),
        check=True,
    )

    made = tmp_path / "my dev"
    assert made / "pin" == load(made / "config.yaml").token.pin_file
    assert 1 == len(keys(made))


def test_long_path_gets_a_short_socket(tmp_path):
    """If the path is too long for a socket, another one is used and printed."""
    directory = tmp_path / ("d" * 100)
    runtime = tempfile.mkdtemp(dir="/tmp")
    try:
        ended = setup(directory, XDG_RUNTIME_DIR=runtime)
        config = load(directory / "config.yaml")
        socket = config.listen.socket
        shutil.rmtree(socket.parent)
        again = setup(directory, XDG_RUNTIME_DIR=runtime)

        assert Path(runtime) == socket.parent.parent
        assert config.http.admin_socket is None
        assert 0o700 == socket.parent.stat().st_mode & 0o777
    finally:
        shutil.rmtree(runtime)

    said = (
        f"setup.sh: the path of {directory} is too long for a socket; "
        f"the socket is {socket}"
    )
    assert said in ended.stderr.splitlines()
    assert said in again.stderr.splitlines()
    endpoint = f"unix://{socket}"
    assert endpoint in (directory / "encryption-config.yaml").read_text()


def test_foreign_directory_is_refused(tmp_path):
    """A directory that is used for something else is left unchanged."""
    (tmp_path / "thesis.tex").touch(0o644)
    before = snapshot(tmp_path)
    ended = setup(tmp_path)

    assert 1 == ended.returncode
    assert (
        f"setup.sh: {tmp_path} contains other files; give an empty directory\n"
        == ended.stderr
    )
    assert before == snapshot(tmp_path)


def test_moved_directory_is_refused(made, tmp_path):
    """A directory that was moved is refused, because its files have the old path."""
    shutil.copytree(made, tmp_path / "copy")
    ended = setup(tmp_path / "copy")

    assert 1 == ended.returncode
    assert "was created under another path" in ended.stderr


def test_lost_tokens_are_not_replaced(made, tmp_path):
    """If the token data is lost, no new key replaces the lost one."""
    shutil.copytree(made, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "tokens")
    ended = setup(tmp_path / "copy")

    assert 1 == ended.returncode
    assert "/tokens is missing; remove" in ended.stderr


@pytest.mark.parametrize("name", ["a'b", 'a"b', "a%b", "a#b", "a?b", "a\\b", "a\nb"])
def test_paths_that_no_file_could_quote_are_refused(tmp_path, name):
    """A path that needs quoting in YAML, a URL or softhsm2.conf is refused."""
    ended = setup(tmp_path / name)

    assert 1 == ended.returncode
    assert "contains a character" in ended.stderr


def test_missing_module_is_said(tmp_path):
    """SOFTHSM2_MODULE names the module, and a missing one is reported."""
    ended = setup(tmp_path / "dev", SOFTHSM2_MODULE="/nonexistent.so")

    assert 1 == ended.returncode
    assert "no SoftHSM2 module was found at /nonexistent.so" in ended.stderr


def test_missing_command_is_said(tmp_path):
    """If hsm-kms is missing, nothing is begun."""
    ended = setup(tmp_path / "dev", HSM_KMS="/nonexistent")

    assert 1 == ended.returncode
    assert "/nonexistent does not exist" in ended.stderr
    assert not (tmp_path / "dev").exists()
