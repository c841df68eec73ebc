"""Test `hsm-kms etcd show`, which explains one value."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest

from tests.cli.etcd_cli import IN_CLEAR, OBJECTS, EtcdCli
from tests.harness.etcd_samples import (
    KEY_ID,
    OTHER_KEY_ID,
    SEED_DATA,
    etcdctl_json,
    record,
    v2,
    written,
)
from tests.harness.etcd_server import EtcdServer


@pytest.fixture
def cli(monkeypatch):
    """Provide the commands."""
    return EtcdCli(monkeypatch)


@pytest.fixture
def dump(tmp_path):
    """Provide a file with the output of etcdctl."""
    return written(tmp_path / "dump.json", OBJECTS)


def test_show(dump, cli):
    """`show` explains a value, and says which key decrypts it."""
    assert [
        "key: /registry/secrets/default/a",
        "resource: secrets",
        f"bytes: {len(v2())}",
        "provider: kms v2",
        "version: v2",
        "name: hsm",
        f"key_id: {KEY_ID}",
        "source: seed",
        f"wrapped_bytes: {len(record())}",
        f"data_bytes: {len(SEED_DATA)}",
        "record:",
        "  kind: dek by token",
        "  algorithm: AES-256-GCM",
        "  iv_bytes: 12",
        "  ciphertext_bytes: 48",
        (
            f"decrypted_by: the key {KEY_ID} on the token, with the scope it was "
            "encrypted with (not stored)"
        ),
    ] == cli.show("/registry/secrets/default/a", "--from-json", dump).splitlines()


def test_show_by_a_local_kek(dump, cli):
    """`show` explains the record of the local KEK too; a key may omit the prefix."""
    told = json.loads(cli.show("secrets/default/c", "--from-json", dump, "-o", "json"))

    assert "dek by local kek" == told["record"]["kind"]
    assert "local kek by token" == told["record"]["local_kek"]["kind"]
    assert (
        f"a local KEK, which the key {KEY_ID} on the token decrypts"
        in told["decrypted_by"]
    )


def test_show_never_shows_a_value(dump, cli):
    """`show` says that a value is unencrypted, but does not print it."""
    shown = cli.show("/registry/pods/default/e", "--from-json", dump)

    assert "decrypted_by: nothing: anyone who can read etcd can read it" in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (v2(b"foreign", "aws", key_id="arn:1"), "hsm-kms did not make the record"),
        (b"k8s:enc:aescbc:v1:key1:" + bytes(32), "key of that name in the Encryption"),
        (b"k8s:enc:kms:v3:new:", "provider: unknown\nname: kms:v3"),
        (v2(record(OTHER_KEY_ID)), f"key_id_in_record: {OTHER_KEY_ID}"),
        (v2()[:-9], "problem: the envelope is truncated or corrupt"),
        (v2() + b"\n", f"decrypted_by: the key {KEY_ID}"),  # as etcdctl prints it
        (IN_CLEAR, "provider: identity"),
    ],
)
def test_show_a_value_from_a_file(value, words, tmp_path, cli):
    """`show` explains a raw value that `etcdctl get --print-value-only` printed."""
    path = tmp_path / "value"
    path.write_bytes(value)

    assert words in cli.show("--value-file", path)
    assert words in cli.show("--value-file", "-", stdin=value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: there is no value\nhint: etcdctl prints nothing if it finds"),
        (b"\n", "is empty: there is no value"),
        (etcdctl_json(OBJECTS), "is what `etcdctl -w json` prints, and not one value"),
        (b"/registry/secrets/n/a\n" + v2() + b"\n", "begins with a key"),
        (b64encode(v2()), "is no value of an API server, as it is stored\nhint: give"),
        (v2().hex().encode(), "is no value of an API server"),
        (b"<html>", "is no value of an API server"),
    ],
    ids=["nothing", "newline", "json", "with key", "base64", "hex", "a page"],
)
def test_show_what_is_no_value(content, words, tmp_path, cli):
    """What etcdctl prints without or beside a value is not taken for a value."""
    path = tmp_path / "value"
    path.write_bytes(content)

    assert f"hsm-kms: {path} {words}" in cli.show("--value-file", path, code=1)
    shown = cli.show("--value-file", "-", stdin=content, code=1)
    assert f"hsm-kms: stdin {words}" in shown


def test_show_what_is_not_there(dump, tmp_path, cli):
    """A key or a file that does not exist is named in the error."""
    none = cli.show("secrets/default/z", "--from-json", dump, code=1)
    no_file = cli.show("--value-file", tmp_path / "none", code=1)

    assert none.startswith(
        f"hsm-kms: /registry/secrets/default/z does not exist in {dump}\n"
    )
    assert "none cannot be read: No such file or directory" in no_file


@pytest.mark.parametrize("arguments", [[], ["key", "--value-file", "file"]])
def test_show_wants_one_thing(arguments, cli):
    """`show` takes either a key or a file."""
    assert "give either a KEY or --value-file" in cli.show(*arguments, code=2)


def test_show_from_etcd(cli):
    """`show` asks a live etcd for that one key only."""
    with EtcdServer({k.encode(): v for k, v in OBJECTS.items()}) as server:
        shown = cli.show("/registry/secrets/default/a", "--endpoints", server.endpoint)

    assert f"key_id: {KEY_ID}" in shown
    assert [0] == server.knobs.limits
