"""Test `probe --as-apiserver` with processes that have the name of an API server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import threading

import pytest

from hsm_kms.server.api_servers import credentials_of
from tests.cli.odd_plugin import OddPlugin
from tests.harness.command_line import HSM_KMS, run
from tests.harness.processes import (
    alive,
    children_of,
    in_namespace,
    name_of,
    namespace_prefix,
)
from tests.harness.wait import patient, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become others")

UID, GID, GROUP = 64712, 64713, 64714
WHO = f"user {UID}, group {GID}, supplementary groups: {GROUP}"
SOMEBODY = (f"--reuid={UID}", f"--regid={GID}", f"--groups={GROUP}")
ROOT = ("--reuid=0", "--regid=0", "--clear-groups")
WITHOUT_CAPABILITIES = ("--bounding-set=-all", "--inh-caps=-all")
NOBODY = 0xFFFFFFFF
# An ACL that denies the user, as acl(5) has entries: tag, permissions, user.
ENTRIES = (
    *((1, 7, NOBODY), (2, 0, UID), (4, 7, NOBODY)),
    *((16, 7, NOBODY), (32, 7, NOBODY)),
)
STEPS = 'docs/troubleshooting.md has the steps under "Permission denied"'


@pytest.fixture
def api_server(directory):
    """Start programs with the name of an API server, and stop them."""
    program = directory / "kube-apiserver"
    shutil.copy(shutil.which("sleep"), program)
    directory.chmod(0o755)
    with contextlib.ExitStack() as stack:

        def start(*prefix):
            process = stack.enter_context(
                subprocess.Popen([*prefix, program, "1000"], start_new_session=True)
            )
            stack.callback(process.kill)
            wait_for(lambda: name_of(process.pid) == "kube-apiserver")
            return process.pid

        yield start


@pytest.fixture
def socket(directory):
    """Serve KMS on a socket that only root may use, in a directory of its own."""
    (directory / "run").mkdir(mode=0o755)
    (directory / "run").chmod(0o755)
    path = directory / "run" / "kms.sock"
    with OddPlugin(path):
        path.chmod(0o600)
        yield path


def probe_as(pid, socket):
    """Return the exit code and the findings by id."""
    ended = run("probe", "--socket", socket, "--as-apiserver", str(pid), "-o", "json")
    report = json.loads(ended.stdout)
    return ended.returncode, {each["id"]: each for each in report["checks"]}, report


def open_to_group(path, mode):
    os.chown(path, 0, GROUP)
    path.chmod(mode)


@pytest.mark.usefixtures("open_checkout")
def test_with_the_group(api_server, socket):
    """With a group of kube-apiserver the socket can be used, and it says as whom."""
    open_to_group(socket, 0o660)
    pid = api_server("setpriv", *SOMEBODY)
    code, found, report = probe_as(pid, socket)

    assert (0, {"ok"}) == (code, {each["outcome"] for each in found.values()})
    assert f"kube-apiserver: process {pid}, {WHO}" == found["api-server"]["text"]
    assert {"process": pid, "uid": UID, "gid": GID, "groups": [GROUP]} == report["as"]
    assert [
        *("api-server", "socket", "status", "encrypt", "decrypt", "cost", "mount")
    ] == [*found]


def shut_socket(socket):
    return socket


def shut_directory(socket):
    open_to_group(socket, 0o660)
    socket.parent.chmod(0o700)
    return socket.parent


def shut_above(socket):
    open_to_group(socket, 0o660)
    socket.parent.parent.chmod(0o700)
    return socket.parent.parent


def readable_socket(socket):
    open_to_group(socket, 0o640)
    return socket


# what denies: how that is arranged · what cannot be done · with which mode · the cure
DENIALS = {
    "the socket": (
        shut_socket,
        "may not connect to the socket PATH (srw-------, user 0, group 0)",
        "give the socket a group of kube-apiserver, and mode 0660 (listen.group and",
    ),
    "a socket that cannot be written": (
        readable_socket,
        f"may not connect to the socket PATH (srw-r-----, user 0, group {GROUP})",
        "give the socket a group of kube-apiserver, and mode 0660 (listen.group and",
    ),
    "its directory": (
        shut_directory,
        "may not enter the directory PATH (drwx------, user 0, group 0)",
        "let a group of kube-apiserver enter it, now and at every boot: chgrp GROUP P",
    ),
    "a directory above": (
        shut_above,
        "may not enter the directory PATH (drwx------, user 0, group 0)",
        "let a group of kube-apiserver enter it, now and at every boot: chgrp GROUP P",
    ),
}


@pytest.mark.parametrize("name", DENIALS)
def test_denied(api_server, socket, name):
    """The message names the socket or the directory that denies, and the cure."""
    arrange, cause, cure = DENIALS[name]
    pid = api_server("setpriv", *SOMEBODY)
    denying = str(arrange(socket))
    code, found, _ = probe_as(pid, socket)
    failed = found["socket"]

    cause = cause.replace("PATH", denying)
    assert (1, "failed") == (code, failed["outcome"])
    assert f"socket: kube-apiserver ({WHO}) {cause}" == failed["text"]
    assert failed["hint"].replace(denying, "P").startswith(cure)
    assert failed["hint"].endswith(STEPS)
    assert "skipped" == found["mount"]["outcome"]
    assert 0 == run("probe", "--socket", socket).returncode


@pytest.mark.parametrize("of", ["socket", "directory"])
def test_denied_by_more_than_the_mode(api_server, socket, of):
    """A denial that owner and mode do not explain hints at a security module."""
    open_to_group(socket, 0o666)
    denying = socket if of == "socket" else socket.parent
    entries = b"".join(struct.pack("<HHI", *each) for each in ENTRIES)
    os.setxattr(denying, "system.posix_acl_access", struct.pack("<I", 2) + entries)
    code, found, _ = probe_as(api_server("setpriv", *SOMEBODY), socket)

    assert 1 == code
    assert found["socket"]["hint"].startswith(
        f"owner and mode of {denying} allow it, so SELinux, AppArmor or an ACL may deny"
    )


def test_root(api_server, socket):
    """An API server that is root may do all, unless it has no capability."""
    os.chown(socket, 10001, 10001)
    code, _, _ = probe_as(api_server("setpriv", *ROOT), socket)
    weak = api_server("setpriv", *ROOT, *WITHOUT_CAPABILITIES)
    refused, found, _ = probe_as(weak, socket)

    assert (0, 1) == (code, refused)
    assert "none; without CAP_DAC_OVERRIDE) may not connect" in found["socket"]["text"]


def test_no_such_process(socket):
    """A process that has ended is told; nothing else is tried."""
    with subprocess.Popen(["true"]) as ended:
        pass
    code, found, report = probe_as(ended.pid, socket)

    assert (1, None) == (code, report["api"])
    assert f"process {ended.pid} cannot be seen" in found["api-server"]["text"]
    assert "skipped" == found["socket"]["outcome"]


def test_several(api_server, socket):
    """API servers of different users are not mixed up."""
    pids = [api_server("setpriv", *SOMEBODY), api_server("setpriv", *ROOT)]
    ended = run("probe", "--socket", socket, "--as-apiserver")

    assert 1 == ended.returncode
    assert "API servers run on this node, and as different users" in ended.stdout
    assert all(str(pid) in ended.stdout for pid in pids)
    assert "  hint: give one of them: --as-apiserver PROCESS\n" in ended.stdout


def test_not_root(api_server, socket):
    """Without the rights of root nobody can act as another user; the error says so."""
    pid = api_server("setpriv", *SOMEBODY)
    command = [*HSM_KMS, "probe", "--socket", socket, "--as-apiserver", str(pid)]
    ended = subprocess.run(
        ["setpriv", *WITHOUT_CAPABILITIES, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )

    assert (1, "") == (ended.returncode, ended.stderr)
    assert (
        f"✗ kube-apiserver: this command cannot act as kube-apiserver ({WHO}): "
        "Operation not permitted\n  hint: run it as root, outside containers\n"
    ) in ended.stdout


@pytest.fixture(scope="session")
def prefix():
    """Return the command that makes a mount namespace."""
    return namespace_prefix() or pytest.skip("no mount namespace can be made here")


def test_nothing_mounted(prefix, api_server, socket):
    """An API server whose container lacks the directory is warned of."""
    script = f"mount -t tmpfs none '{socket.parent}'"
    pid = api_server(*in_namespace(prefix, script))
    code, found, _ = probe_as(pid, socket)

    assert (0, "warning") == (code, found["mount"]["outcome"])
    assert found["mount"]["text"].endswith(f"kube-apiserver has nothing at {socket}")


def test_an_old_socket_mounted(prefix, api_server, socket):
    """An API server that has mounted an earlier socket as a file fails."""
    old = socket.parent / "old"
    old.touch()
    script = f"mount --bind '{old}' '{socket}'"
    pid = api_server(*in_namespace(prefix, script))
    code, found, _ = probe_as(pid, socket)

    assert (1, "failed") == (code, found["mount"]["outcome"])
    assert (
        "mount its directory into the pod, and not the socket itself"
        == (found["mount"]["hint"])
    )


def test_credentials(api_server):
    """User, group, groups and capabilities are those that decide on files."""
    found = credentials_of(api_server("setpriv", *SOMEBODY))

    assert (UID, GID, (GROUP,), 0) == (
        found.uid,
        found.gid,
        found.groups,
        found.capabilities,
    )


@pytest.mark.usefixtures("open_checkout")
def test_as_a_process(api_server, socket):
    """As a command of its own it does the same; nothing of it is left behind."""
    open_to_group(socket, 0o660)
    pid = api_server("setpriv", *SOMEBODY)
    ended = subprocess.run(
        [*HSM_KMS, "probe", "--socket", socket, "--as-apiserver", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )

    assert (0, "") == (ended.returncode, ended.stderr)
    assert f"✓ kube-apiserver: process {pid}, {WHO}\n" in ended.stdout


def test_interrupted(api_server, directory):
    """Ctrl-C while a call hangs ends the command, and the process that calls."""
    done = threading.Event()
    pid = api_server("setpriv", *ROOT)
    path = directory / "hangs"
    command = [*HSM_KMS, "probe", "--socket", path, "--as-apiserver", str(pid)]
    with OddPlugin(path, Encrypt=lambda *_: done.wait(patient(60))) as plugin:
        process = subprocess.Popen(
            [*command, "--timeout", "1h"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: plugin.calls["Encrypt"])
        (calling,) = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=patient(60))
        wait_for(lambda: not alive(calling))
        done.set()

    assert (130, "hsm-kms: interrupted\n") == (process.returncode, said)
