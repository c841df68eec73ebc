"""Test `hsm-kms etcd decrypt` with records of a real server and a real token."""

from __future__ import annotations

import base64
import json
import os
import re
import stat

import pytest

from hsm_kms.etcd.refusals import LOCAL
from hsm_kms.ipc.values import KeyRef
from hsm_kms.wrapping.record import Kind, Record
from tests.cli.decrypting import (
    KEY,
    OBJECT,
    PASSWORD,
    by_gcm,
    by_seed,
    decrypt,
    secret,
    v2_with,
)
from tests.cli.keys_rig import Keys
from tests.cli.verifying import dump, flipped, v1, v2, verify
from tests.harness.command_line import HSM_KMS
from tests.harness.etcd_samples import by_cbc
from tests.harness.forged import forge
from tests.harness.softhsm import PIN
from tests.harness.terminals import Shell
from tests.harness.token_keys import LABEL, create
from tests.harness.wait import wait_for

MANIFEST = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "a", "namespace": "ns"},
    "type": "Opaque",
    "data": {"password": base64.b64encode(PASSWORD.encode()).decode()},
}


@pytest.fixture
def node(make_plugin, hsm):
    """Provide a configuration with the KEK of the shared server; nothing runs on it."""
    return make_plugin(hsm)


def test_v2(shared_server, node):
    """A value of KMS v2 is printed, and the log says who decrypted which value."""
    ended = decrypt(node, v2_with(shared_server), "--reveal")

    assert (0, MANIFEST) == (ended.code, json.loads(ended.out))
    (line,) = ended.err.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[warning", line)
    for part in (
        "stored value decrypted",
        f"key={KEY}",
        f"key_id={shared_server.status().key_id}",
        f"uid={os.getuid()}",
        "login_uid=",
        "to=stdout",
        "any_key=False",
    ):
        assert part in line
    hidden = PASSWORD, MANIFEST["data"]["password"], PASSWORD.encode().hex(), PIN
    assert not any(form in ended.err for form in hidden)


def test_v2_of_1_27(shared_server, node):
    """Kubernetes 1.27 wrapped DEKs; the type of the source says so."""
    dek = os.urandom(32)
    sealed = shared_server.encrypt(dek)
    value = v2(sealed.ciphertext, sealed.key_id, data=by_gcm(dek), source=0)

    assert MANIFEST == json.loads(decrypt(node, value, "--reveal").out)


def test_v1(shared_server, node):
    """A value of KMS v1 is decrypted."""
    dek = os.urandom(32)
    value = v1(shared_server.v1_encrypt(dek), data=by_gcm(dek))

    assert MANIFEST == json.loads(decrypt(node, value, "--reveal").out)


def test_v1_of_1_24(shared_server, node):
    """A value by AES-CBC is decrypted, with the warning that nothing proves it."""
    dek = os.urandom(32)
    value = v1(shared_server.v1_encrypt(dek), data=by_cbc(dek, OBJECT))
    ended = decrypt(node, value, "--reveal")

    assert MANIFEST == json.loads(ended.out)
    assert "the value may have been changed" in ended.err
    assert (
        "may have been changed"
        not in decrypt(node, v2_with(shared_server), "--reveal").err
    )


def test_file(shared_server, node, directory):
    """--output-file gets the object as it was stored, in a new file of mode 0600."""
    file = directory / "object"
    ended = decrypt(node, v2_with(shared_server), "--output-file", file)

    assert (0, f"wrote {len(OBJECT)} bytes to {file}\n") == (ended.code, ended.out)
    assert OBJECT == file.read_bytes()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert f"to={file}" in ended.err


@pytest.mark.parametrize("there", ["file", "link", "directory"])
def test_file_that_exists(shared_server, node, directory, there):
    """A file that exists is not replaced, and a link is not followed."""
    target, file = directory / "target", directory / "object"
    target.write_bytes(b"kept")
    if there == "link":
        file.symlink_to(target)
    elif there == "file":
        target.rename(file)
    else:
        file.mkdir()
    ended = decrypt(node, v2_with(shared_server), "--output-file", file)

    assert ended.code
    assert str(file) in ended.err
    assert there == "directory" or b"kept" == file.read_bytes()


def test_file_that_cannot_be_written(shared_server, node, directory):
    """If the disk is full, no part of the object is left."""
    config = ("--config", str(node.config_file))
    path = dump(node, {"a": v2_with(shared_server, secret(x=bytes(100_000)))})
    command = [*HSM_KMS, "etcd", "decrypt", KEY, "--from-json", str(path), *config]
    # No file grows beyond 20 kB: the state directory has smaller ones only.
    line = f"trap '' XFSZ; ulimit -f 20; {' '.join(command)} --output-file object"
    shell = Shell(directory, node.config_file, [], {})
    code, printed = shell.run(line, typed="", after="")

    assert 1 == code
    assert "hsm-kms: object cannot be written: File too large" in printed
    assert not (directory / "object").exists()


@pytest.mark.parametrize(
    ("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)], ids=["yes", "no", "enter"]
)
def test_asks(shared_server, node, directory, typed, code):
    """On a terminal the command asks; only after yes it uses the token and prints."""
    path = dump(node, {"a": v2_with(shared_server)})
    shell = Shell(directory, node.config_file, [], {})
    ended, printed = shell.run(
        f"hsm-kms etcd decrypt secrets/ns/a --from-json {path}",
        typed=typed,
        after="unencrypted? [y/N]: ",
    )

    assert code == ended, printed
    assert f"print what is in {KEY}, unencrypted? [y/N]: " in printed
    assert (MANIFEST["data"]["password"] in printed) == (code == 0)
    assert ("stored value decrypted" in printed) == (code == 0)


def test_nobody_to_ask(shared_server, node):
    """Without a terminal the command line must say where the object goes."""
    value = v2_with(shared_server)

    assert decrypt(node, value) == (
        2,
        "",
        "hsm-kms: stdin is not a terminal, so give --reveal or --output-file\n",
    )
    both = decrypt(node, value, "--reveal", "--output-file", "x")
    assert "--reveal and --output-file exclude each other" in both.err


def test_of_another_kind(shared_server, node, directory):
    """An object in protobuf that is no Secret goes to a file only, unchanged."""
    pod = OBJECT.replace(b"\x06Secret", b"\x06Podset")
    value = v2_with(shared_server, pod)
    ended = decrypt(node, value, "--reveal")
    file = directory / "object"

    assert (1, "") == (ended.code, ended.out)
    assert "the object is a Podset of v1 in protobuf" in ended.err
    assert "hint: give --output-file FILE" in ended.err
    assert 0 == decrypt(node, value, "--output-file", file).code
    assert pod == file.read_bytes()


# What is refused


def refused(node, value, *arguments):
    """Return why a value is not decrypted; nothing is on stdout."""
    ended = decrypt(node, value, "--reveal", *arguments)
    assert (1, "") == (ended.code, ended.out)
    assert "stored value decrypted" not in ended.err
    return ended.err


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"k8s\0clear", "is stored unencrypted"),
        (b"k8s:enc:aescbc:v1:k1:" + bytes(32), "by aescbc with the key 'k1'"),
        (b"k8s:enc:aesgcm:v1:k2:" + bytes(32), "by aesgcm with the key 'k2'"),
        (b"k8s:enc:secretbox:v1:k3:" + bytes(40), "by secretbox with the key 'k3'"),
        (v2(bytes(60), "arn:1", name="aws"), "another KMS plugin, 'aws' of KMS v2"),
        (v1(bytes(60), name="vault"), "another KMS plugin, 'vault' of KMS v1"),
        (b"k8s:enc:new:v1:\x1b[2J:x", r"an unknown provider, 'new:v1'"),
        (b"k8s:enc:kms:v2:hsm", "is damaged: the value is truncated"),
    ],
)
def test_other_providers(node, value, why):
    """A value of another provider is refused by its name, before any login."""
    node.config["token"]["module"] = "/nowhere/module.so"
    node.write_config()

    assert why in refused(node, value)


def test_moved_or_damaged(shared_server, node):
    """A value that was copied from another key, or changed, is not authentic."""
    good = v2_with(shared_server)
    why = f"{KEY} is not authentic: it was damaged, or copied from another key of etcd"

    assert why in refused(node, v2_with(shared_server, key="/registry/secrets/ns/b"))
    at = good.index(b"\x0a") + 60  # in the encrypted data
    assert why in refused(node, flipped(good, at))


def test_scope(shared_server, make_plugin, hsm):
    """A configuration with another scope is told so."""
    other = make_plugin(hsm, scope="other")

    assert "set the scope" in refused(other, v2_with(shared_server))


def test_other_token(shared_server, make_plugin, empty_hsm):
    """A token without the key names the key_id."""
    other = make_plugin(empty_hsm)
    assert 0 == other.cli("keys", "generate").returncode

    key_id = shared_server.status().key_id
    assert f"no such key on this token (key_id {key_id})" in refused(
        other, v2_with(shared_server), "--any-key"
    )


def test_retired_by_the_configuration(shared_server, node):
    """A key in keys.retired decrypts with --any-key only."""
    value = v2_with(shared_server)
    node.config["keys"]["retired"] = [shared_server.status().key_id]
    node.write_config()

    assert "to use the key anyway, give --any-key" in refused(node, value)
    ended = decrypt(node, value, "--reveal", "--any-key")
    assert MANIFEST == json.loads(ended.out)
    assert "any_key=True" in ended.err


def test_retired_by_its_label(shared_server, make_plugin, hsm):
    """A key that `keys retire` has relabelled decrypts with --any-key only."""
    value = v2_with(shared_server)
    node = make_plugin(hsm, token={"shared": True})
    keys = Keys(node)
    old = shared_server.status().key_id
    keys.configure("keys", current=keys.generate("--another"))
    keys.run("retire", old, "--without-scan", "--yes")

    assert "if the key was retired, give --any-key" in refused(node, value)
    assert MANIFEST == json.loads(decrypt(node, value, "--reveal", "--any-key").out)


def test_local_kek_that_the_server_refuses(shared_server, make_plugin, hsm):
    """With accept_local: false a record by a local KEK is refused, as by the server."""
    node = make_plugin(
        hsm,
        apis={"v1": {"enabled": True, "wrapping": "token"}},
        local_keys={"accept_local": False},
    )
    server = make_plugin(hsm, apis={"v1": {"enabled": True, "wrapping": "software"}})
    server.start().wait_healthz("ok")
    dek = os.urandom(32)
    wait_for(lambda: by_a_local_kek(server.v1_encrypt(dek)))
    value = v1(server.v1_encrypt(dek), data=by_gcm(dek))

    assert "with local_keys.accept_local: true" in refused(node, value)
    assert LOCAL in verify(node, {"a": value}).stdout
    # Through the local KEK in the record.
    assert MANIFEST == json.loads(decrypt(server, value, "--reveal").out)


def by_a_local_kek(record):
    """Return True if a local KEK made the record; at first the token does."""
    return Record.decode(record).header.kind is Kind.DEK_BY_LOCAL_KEK


def test_foreign(shared_server, node):
    """A value under a key that somebody may know decrypts with --any-key only."""
    create(node.hsm, KeyRef(LABEL, b"planted"))
    seed = os.urandom(32)
    record, key_id = forge(seed)
    value = v2(record, key_id, data=by_seed(seed))

    assert "someone who knows the key may have forged the value" in refused(node, value)
    assert MANIFEST == json.loads(decrypt(node, value, "--reveal", "--any-key").out)
