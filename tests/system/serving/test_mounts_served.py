"""Files that are mounted by themselves, as `-v FILE:FILE` and a subPath do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.command_line import HSM_KMS
from tests.harness.processes import in_namespace, name_of, namespace_prefix
from tests.harness.wait import patient, wait_for

NEVER = "is mounted as a file, so no change of it appears here"
# 15 bytes, the last of which begins a character of two.
ODD_NAME = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"abcdefghijklmn\\xd0", 0, 0, 0)  # PR_SET_NAME
sys.stdin.read()
"""
CURE = "mount its directory instead"


@pytest.fixture(scope="session")
def prefix():
    """Return the command that makes a mount namespace."""
    return namespace_prefix() or pytest.skip("no mount namespace can be made here")


def mounting(*files):
    """Return a shell script that mounts each file on itself."""
    return " && ".join(f"mount --bind '{file}' '{file}'" for file in files)


def test_serve(prefix, make_plugin, hsm):
    """A server whose configuration and PIN are mounted as files says so at once."""
    plugin = make_plugin(hsm)
    plugin.config["listen"]["socket"] = "/nonexistent/kms.sock"
    plugin.write_config()
    pin = plugin.config["token"]["pin_file"]
    serve = [*HSM_KMS, "serve", "--config", str(plugin.config_file)]
    ended = subprocess.run(
        in_namespace(prefix, mounting(plugin.config_file, pin), *serve),
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )
    said = [json.loads(line) for line in ended.stderr.splitlines() if line[0] == "{"]
    found = [each for each in said if each["event"] == "a file is mounted by itself"]

    assert {
        "configuration": (f"{plugin.config_file} {NEVER}", CURE),
        "token.pin_file": (f"{pin} {NEVER}", CURE),
    } == {each["setting"]: (each["error"], each["hint"]) for each in found}


def test_names_that_are_no_text(prefix, make_plugin, hsm, directory):
    """Neither a mount point nor a process with a name of odd bytes stops `check`."""
    plugin = make_plugin(hsm)
    odd = directory / os.fsdecode(b"odd \xff\xe2\x80\xa8")
    odd.mkdir()
    named = [sys.executable, "-c", ODD_NAME]
    check = [*HSM_KMS, "check", "--offline", "--config", str(plugin.config_file)]
    script = 'mount -t tmpfs none "$ODD"'
    with subprocess.Popen(named, stdin=subprocess.PIPE) as process:
        comm = Path(f"/proc/{process.pid}/comm")
        wait_for(lambda: b"\xd0" in comm.read_bytes())
        ended = subprocess.run(
            in_namespace(prefix, f"{script} && {mounting(plugin.config_file)}", *check),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"ODD": str(odd)},
            timeout=patient(60),
        )
        process.stdin.close()

    assert "Traceback" not in ended.stderr
    assert f"! configuration: {plugin.config_file} {NEVER}\n" in ended.stdout


def test_check(prefix, make_plugin, hsm, directory):
    """`check` warns of such files, and of an API server that has the socket so."""
    # Every `check` on this machine whose socket has this name sees the mount, too.
    socket = directory / f"{directory.name}.sock"
    plugin = make_plugin(hsm, listen={"socket": str(socket)})
    plugin.socket = socket
    plugin.start()
    api_server = directory / "kube-apiserver"
    shutil.copy(shutil.which("sleep"), api_server)
    sleeping = in_namespace(prefix, mounting(plugin.socket), str(api_server), "1000")
    check = [*HSM_KMS, "check", "--offline", "--config", str(plugin.config_file)]
    with subprocess.Popen(sleeping) as process:
        try:
            wait_for(lambda: name_of(process.pid) == "kube-apiserver")
            ended = subprocess.run(
                in_namespace(prefix, mounting(plugin.config_file), *check),
                capture_output=True,
                text=True,
                check=False,
                timeout=patient(60),
            )
        finally:
            process.kill()

    assert f"! configuration: {plugin.config_file} {NEVER}\n" in ended.stdout
    assert f"! kube-apiserver (process {process.pid}) has {socket.name}" in ended.stdout
    assert 2 == ended.stdout.count(f"  hint: {CURE}\n")
