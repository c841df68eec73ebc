"""The image started, as restricted as the static pod starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from hsm_kms import __version__
from hsm_kms.api.rpc import kms_v2_pb2, kms_v2_pb2_grpc
from tests.harness.processes import alive, children_of, keeps, name_of
from tests.harness.wait import patient, wait_for
from tests.system.node.containers import STATE, USER

DEK = bytes(range(32))
CONFIG = f"""\
version: 1
state_dir: {STATE}
listen: {{socket: {STATE}/kms.sock}}
token: {{module: /nonexistent.so, token_label: k8s, pin_file: {STATE}/pin}}
http: {{listen: null, admin_socket: null}}
"""


@pytest.fixture
def served(run, unpacked_dev):
    """A server in a container, on a token that its first start has made."""
    container = run(unpacked_dev)
    socket = container.state / "kms.sock"
    wait_for(lambda: socket.exists() or container.ended(), 120)
    assert socket.exists(), container.said()
    wait_for(lambda: "healthz: ok" in container.execute("hsm-kms", "status").stdout)
    return container


def is_ready(container):
    """Return True if a signal ends a container in order, or if it has ended.

    Its process is runc at first, which handles signals too.
    """
    pid = container.pid
    started = not name_of(pid).startswith("runc") and keeps(pid, signal.SIGTERM)
    return started or container.ended()


@contextlib.contextmanager
def client(container):
    """Connect to the KMS socket from the node, as kube-apiserver does."""
    with grpc.insecure_channel(f"unix:{container.state / 'kms.sock'}") as channel:
        yield kms_v2_pb2_grpc.KeyManagementServiceStub(channel)


def status_of(pid):
    """Return the fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split() for key, value in (line.split(":", 1) for line in lines)}


def test_version(run, unpacked):
    """The image starts with a read-only root and without a capability."""
    container = run(unpacked, "--version")

    assert 0 == container.wait(60), container.said()
    assert f"hsm-kms, version {__version__}\n" == container.said()


def test_no_configuration(run, unpacked):
    """Without a configuration the server ends with 2 and names the file."""
    container = run(unpacked)

    assert 2 == container.wait(60), container.said()
    assert "/etc/hsm-kms/config.yaml" in container.said()


def test_restrictions(served):
    """The server and its workers are user 10001 and have no capability."""
    for pid in [served.pid, *children_of(served.pid)]:
        status = status_of(pid)
        assert [str(USER)] * 4 == status["Uid"]
        assert [str(USER)] * 4 == status["Gid"]
        assert {"0" * 16} == {status[f"Cap{each}"][0] for each in ("Prm", "Eff", "Bnd")}
        assert ["1"] == status["NoNewPrivs"]


def test_encrypts(served):
    """What the API server has encrypted through the socket is decrypted again."""
    with client(served) as kms:
        made = kms.Encrypt(
            kms_v2_pb2.EncryptRequest(plaintext=DEK, uid="1"), timeout=patient(10)
        )
        opened = kms.Decrypt(
            kms_v2_pb2.DecryptRequest(
                ciphertext=made.ciphertext,
                key_id=made.key_id,
                annotations=made.annotations,
                uid="2",
            ),
            timeout=patient(10),
        )

    assert DEK not in made.ciphertext
    assert DEK == opened.plaintext


def test_commands_inside(served):
    """Commands in the container find the configuration, and every check passes."""
    check = served.execute("hsm-kms", "check")
    keys = served.execute("hsm-kms", "keys", "list", "-o", "json")

    assert 0 == check.returncode, check.stdout + check.stderr
    assert "✗" not in check.stdout
    assert 1 == len(json.loads(keys.stdout))


def test_sigterm(served):
    """As PID 1 the server ends within 3 s of SIGTERM, and removes its socket."""
    began = time.monotonic()
    served.kill("TERM")
    code = served.wait(30)
    took = time.monotonic() - began

    assert 0 == code
    assert took < patient(3)
    assert not (served.state / "kms.sock").exists()


def test_sigterm_at_the_start(run, unpacked, directory):
    """SIGTERM is not lost while Python starts, before it handles any signal."""
    state = directory / "state"
    state.mkdir(mode=0o700)
    config = state / "config.yaml"
    config.write_text(CONFIG)
    for path in (state, config):
        os.chown(path, USER, USER)
    container = run(unpacked, "serve", "--config", f"{STATE}/config.yaml", state=state)
    wait_for(lambda: is_ready(container))
    container.kill("TERM")

    assert 0 == container.wait(60), container.said()


@pytest.mark.parametrize("signal_name", ["TERM", "INT"])
def test_signal_while_the_token_is_made(run, unpacked_dev, signal_name):
    """The image with SoftHSM2 ends also while its first start makes the token."""
    container = run(unpacked_dev)
    wait_for(lambda: is_ready(container))
    container.kill(signal_name)

    assert container.wait(60) in {0, 130, 143}, container.said()


def test_orphans_are_reaped(served):
    """As PID 1 the server waits for processes that others have left behind."""
    left = served.execute("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    assert 0 == left.returncode, left.stderr
    orphans = wait_for(
        lambda: [pid for pid in children_of(served.pid) if name_of(pid) == "sleep"]
    )
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)

    wait_for(lambda: not set(orphans) & set(children_of(served.pid)))
    assert all(map(alive, children_of(served.pid)))


def test_restart(served, run, unpacked_dev):
    """The next container on the same state serves the same key."""
    before = key_of(served)
    served.kill("TERM")
    served.wait(30)
    again = run(unpacked_dev, state=served.state)

    assert before == wait_for(lambda: key_of(again))


def key_of(container):
    """Return the key_id of a server that is well, None of one that is not."""
    lines = container.execute("hsm-kms", "status").stdout.splitlines()
    return lines[1] if lines[:1] == ["healthz: ok"] else None
