"""Test `probe` with hsm-kms, with plugins of others, and with what is no plugin."""

from __future__ import annotations

import contextlib
import json
import re
import socket as sockets
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.cli.odd_plugin import ANNOTATIONS, KEY_ID, OddPlugin, turned
from tests.cli.waiting import run_until_waiting
from tests.harness.command_line import run

OURS = r"""
✓ socket SOCKET: process \d+ serves gRPC on it
✓ Status: healthz ok, version v2, key_id KEY_ID
✓ Encrypt of 32 bytes: made a ciphertext of \d+ bytes, the key_id is that of Status
✓ Decrypt: returned the same 32 bytes
✓ cost of a call: Status \S+ ms \(slowest of 5: \S+\), Encrypt \S+ ms \(slowest .*\)
"""


def probe(socket, *options):
    return run("probe", "--socket", socket, *options)


def outcomes(socket, *options):
    """Return the exit code, and what JSON says, with checks by outcome and id."""
    ended = probe(socket, "-o", "json", *options)
    report = json.loads(ended.stdout)
    found = {}
    for each in report["checks"]:
        assert not {*each} - {"id", "outcome", "text", "hint"}
        found.setdefault(each["outcome"], {})[each["id"]] = each["text"]
    assert report["ok"] == (ended.returncode == 0)
    return report, found


def test_text(shared_server):
    """With hsm-kms each line says what was tried, and the last one what it costs."""
    ended = probe(shared_server.socket)
    wanted = OURS.replace("SOCKET", re.escape(str(shared_server.socket)))
    wanted = wanted.replace("KEY_ID", shared_server.status().key_id)

    assert (0, "") == (ended.returncode, ended.stderr)
    for line, expected in zip(
        ended.stdout.splitlines(), wanted.strip().splitlines(), strict=True
    ):
        assert re.fullmatch(expected, line), line


def test_json(shared_server):
    """JSON has what the plugin reported, and the cost of each method."""
    report, found = outcomes(shared_server.socket)

    assert ["ok"] == [*found]
    assert ["socket", "status", "encrypt", "decrypt", "cost"] == [*found["ok"]]
    assert {
        "socket": str(shared_server.socket),
        "as": None,
        "api": "v2",
        "version": "v2",
        "healthz": "ok",
        "key_id": shared_server.status().key_id,
    }.items() <= report.items()
    assert {"Status", "Encrypt", "Decrypt"} == {*report["milliseconds"]}
    for cost in report["milliseconds"].values():
        assert 0 < cost["median"] <= cost["slowest"]
        assert 5 == cost["calls"]


def test_endpoint(shared_server):
    """The endpoint of an EncryptionConfiguration is taken as it is."""
    assert 0 == probe(f"unix://{shared_server.socket}").returncode
    refused = probe("unix://run/kms.sock")
    assert 2 == refused.returncode
    assert "must be a path, or unix:// and an absolute path" in refused.stderr


def test_v1_of_ours(shared_server):
    """KMS v1 is tried if it is asked for."""
    report, found = outcomes(shared_server.socket, "--api", "v1")

    assert ("v1", "v1beta1", "") == (
        report["api"],
        report["version"],
        report["key_id"],
    )
    assert ["ok"] == [*found]
    assert {"Version", "Encrypt", "Decrypt"} == {*report["milliseconds"]}


def test_another_plugin(directory):
    """A plugin of somebody else passes, with annotations and a key_id like theirs."""
    with OddPlugin(directory / "s") as plugin:
        report, found = outcomes(directory / "s")
        calls = dict(plugin.calls)

    assert (["ok"], KEY_ID) == ([*found], report["key_id"])
    assert f"annotations {', '.join(sorted(ANNOTATIONS))}" in found["ok"]["encrypt"]
    assert {"Status": 6, "Encrypt": 5, "Decrypt": 5} == calls
    # It must not make hsm-kms announce a new key.
    assert ("hsm-kms-observer", "1") in plugin.metadata


def test_v1_alone(directory):
    """KMS v1 is tried if only that answers, with 4 bytes first."""
    sizes = []
    with OddPlugin(
        directory / "s",
        "v1",
        Encrypt=lambda reply, _: sizes.append(len(reply.cipher)),
    ):
        report, found = outcomes(directory / "s")
        asked, refused = outcomes(directory / "s", "--api", "v2")

    assert ("v1", ["ok"]) == (report["api"], [*found])
    assert [4, 32, 32, 32, 32] == sizes
    assert "v2" == asked["api"]
    assert "Status: the plugin does not serve this API" == refused["failed"]["status"]


def test_neither(directory):
    """A gRPC server that serves neither API fails."""
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{directory}/g")
    server.start()
    try:
        _, found = outcomes(directory / "g")
    finally:
        server.stop(None).wait()

    wanted = "Version: the plugin does not serve this API"
    assert wanted == found["failed"]["status"]
    assert "the check `encrypt` failed" == found["skipped"]["decrypt"]


def failing(code, text="a SECRET is at /path"):
    return lambda _, context: context.abort(code, text)


# what the plugin does wrong: which answers differ · the step that fails, and why
FAULTS = {
    "not healthy": (
        {"Status": {"healthz": "the token\x1b is gone"}},
        ("status", r'Status: healthz is "the token\x1b is gone", and not "ok"'),
    ),
    "almost healthy": (
        {"Status": {"healthz": "OK"}},
        ("status", 'Status: healthz is "OK", and not "ok"'),
    ),
    "another version": (
        {"Status": {"version": "v2alpha1"}},
        ("status", 'Status: version is "v2alpha1", and neither "v2" nor "v2beta1"'),
    ),
    "no key_id": (
        {"Status": {"key_id": ""}, "Encrypt": {"key_id": ""}},
        ("encrypt", "Encrypt of 32 bytes: key_id has 0 bytes, and must have 1 to"),
    ),
    "a long key_id": (
        {"Status": {"key_id": "\u00e4" * 513}},
        ("status", "Status: key_id has 1,026 bytes, and must have 1 to 1,024"),
    ),
    "another key_id": (
        {"Encrypt": {"key_id": "other"}},
        ("encrypt", 'Encrypt of 32 bytes: key_id is "other", and that of Status is "p'),
    ),
    "no ciphertext": (
        {"Encrypt": {"ciphertext": b""}},
        ("encrypt", "Encrypt of 32 bytes: ciphertext has 0 bytes, and must have 1 to"),
    ),
    "a large ciphertext": (
        {"Encrypt": {"ciphertext": bytes(1025)}},
        ("encrypt", "Encrypt of 32 bytes: ciphertext has 1,025 bytes, and must have 1"),
    ),
    "the example of the documentation": (
        {"Encrypt": {"annotations": {"kms.example.io/auditid": b""}}},
        ("encrypt", 'Encrypt of 32 bytes: the key "kms.example.io/auditid" of an anno'),
    ),
    "large annotations": (
        {"Encrypt": {"annotations": {"a.b": bytes(32766)}}},
        ("encrypt", "Encrypt of 32 bytes: annotations have 32,769 bytes, and may have"),
    ),
    "another plaintext": (
        {"Decrypt": {"plaintext": bytes(32)}},
        ("decrypt", "Decrypt: 32 bytes came back that are not the 32 bytes that were"),
    ),
    "a short plaintext": (
        {"Decrypt": {"plaintext": b"x"}},
        ("decrypt", "Decrypt: 1 bytes came back that are not the 32 bytes that were"),
    ),
    "Encrypt fails": (
        {"Encrypt": failing(grpc.StatusCode.INTERNAL)},
        ("encrypt", "Encrypt of 32 bytes: INTERNAL: a SECRET is at /path"),
    ),
    "Decrypt fails": (
        {"Decrypt": failing(grpc.StatusCode.UNAVAILABLE, "\n\x00")},
        ("decrypt", r"Decrypt: UNAVAILABLE: \n\x00"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_answers(directory, name):
    """What kube-apiserver would refuse fails the step, and has a hint."""
    answers, (step, cause) = FAULTS[name]
    with OddPlugin(directory / "s", **answers):
        _, found = outcomes(directory / "s")
        text = probe(directory / "s").stdout

    assert found["failed"][step].startswith(cause)
    assert re.search(f"^✗ {re.escape(cause)}.*\n  hint: ", text, re.MULTILINE)
    assert {"status", "encrypt", "decrypt"} - {step, "decrypt", "status"} <= {
        *found["ok"],
        *found["failed"],
    }


V1_FAULTS = {
    "version": (
        {"Version": {"version": "v2"}},
        'Version: version is "v2", and not "v1beta1"',
    ),
    "no cipher": ({"Encrypt": {"cipher": b""}}, "Encrypt of 4 bytes: cipher has 0"),
    "a large cipher": (
        {"Encrypt": {"cipher": bytes(65536)}},
        "Encrypt of 4 bytes: cipher has 65,536 bytes, and must have 1 to 65,535",
    ),
    "another plaintext": ({"Decrypt": {"plain": b"pong"}}, "Decrypt: 4 bytes came"),
}


@pytest.mark.parametrize("name", V1_FAULTS)
def test_wrong_answers_of_v1(directory, name):
    """The same holds of KMS v1."""
    answers, cause = V1_FAULTS[name]
    with OddPlugin(directory / "s", "v1", **answers):
        _, found = outcomes(directory / "s")

    assert any(each.startswith(cause) for each in found["failed"].values()), found


def test_fault_of_one_call(directory):
    """A fault that only one of several calls shows is found."""
    calls = iter(range(10))

    def sometimes(reply, _):
        if next(calls) == 3:
            reply.plaintext = b""

    with OddPlugin(directory / "s", Decrypt=sometimes):
        _, found = outcomes(directory / "s")

    assert ["decrypt"] == [*found["failed"]]


def test_version_that_changes(directory):
    """A version that changes is a fault, even from one good version to another."""
    calls = iter(range(10))

    def status(reply, _):
        reply.version = "v2" if next(calls) < 3 else "v2beta1"

    with OddPlugin(directory / "s", Status=status):
        _, found = outcomes(directory / "s")

    assert (
        'Status: version is "v2beta1", and was "v2" before'
        == (found["failed"]["status"])
    )


def test_rotation_meanwhile(directory):
    """A key that is rotated between Status and Encrypt is no fault."""
    calls = iter(range(100))

    def status(reply, _):
        reply.key_id = "old" if next(calls) < 2 else "new"

    with OddPlugin(directory / "s", Status=status, Encrypt={"key_id": "new"}):
        report, found = outcomes(directory / "s")

    assert {"status", "encrypt"} <= {*found["ok"]}
    assert "new" == report["key_id"]


def test_expected_key_id(directory):
    """Another key_id than the expected one fails; KMS v1 has none."""
    with OddPlugin(directory / "s", "v2", "v1"):
        _, right = outcomes(directory / "s", "--expected-key-id", KEY_ID)
        _, wrong = outcomes(directory / "s", "--expected-key-id", "x")
        _, none = outcomes(directory / "s", "--expected-key-id", "x", "--api", "v1")

    assert "the key_id is the expected one" == right["ok"]["key-id"]
    assert (
        f'key_id: it is "{KEY_ID}", and "x" was expected' == (wrong["failed"]["key-id"])
    )
    assert "key_id: the plugin reported none" == none["failed"]["key-id"]


def test_timeout(directory):
    """A call that takes longer than --timeout fails as kube-apiserver's would."""
    done = threading.Event()
    with OddPlugin(directory / "s", Encrypt=lambda *_: done.wait(60)):
        _, found = outcomes(directory / "s", "--timeout", "300ms")
        done.set()

    assert ["encrypt"] == [*found["failed"]]
    assert "Encrypt of 32 bytes: no answer within 0.3 s" == found["failed"]["encrypt"]


def test_wait(directory):
    """--wait tries again until the plugin is there and well."""
    calls = iter(range(1000))

    def status(reply, _):
        reply.healthz = "starting" if next(calls) < 3 else "ok"

    with contextlib.ExitStack() as stack:

        def start():
            stack.enter_context(OddPlugin(directory / "s", Status=status))

        ended = run_until_waiting(
            start, "probe", "--socket", directory / "s", "--wait", "5m"
        )

    assert 0 == ended.code
    assert ended.err.startswith("waiting: socket: the KMS socket ")
    assert 'waiting: Status: healthz is "starting", and not "ok"\n' in ended.err
    assert "✗" not in ended.out


@contextlib.contextmanager
def talker(path, first, *, silent=False):
    """A server that answers every connection with some bytes."""
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        held = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    held.append(connection)
                    connection.recv(1000)
                    connection.sendall(first)
                    if not silent:
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(sockets.SHUT_RDWR)
            thread.join()
            for each in held:
                each.close()


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "belongs to an HTTP server, and not to a",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak gRPC"),
        (b"", "does not speak gRPC"),
    ],
)
def test_another_server(directory, first, cause):
    """A server that is no KMS plugin is told by what it sends."""
    with talker(directory / "s", first):
        _, found = outcomes(directory / "s")

    assert cause in found["failed"]["socket"]
    assert ["status", "encrypt", "decrypt"] == [*found["skipped"]]


def test_a_silent_server(directory):
    """A server that accepts a connection and sends nothing does not answer."""
    with talker(directory / "s", b"", silent=True):
        _, found = outcomes(directory / "s", "--timeout", "300ms")

    assert found["failed"]["socket"].endswith("does not answer")


def test_no_server(directory):
    """A socket that is missing or that nobody listens on fails."""
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(directory / "left"))
    _, missing = outcomes(directory / "none")
    _, unused = outcomes(directory / "left")

    assert missing["failed"]["socket"].endswith("none does not exist")
    assert "no server listens on the KMS socket" in unused["failed"]["socket"]


def test_the_plugin_turns():
    """What the odd plugin encrypts is not what it got."""
    assert b"ping" != turned(b"ping")
    assert b"ping" == turned(turned(b"ping"))
