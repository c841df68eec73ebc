"""Test `hsm-kms etcd verify` with records of a real server and a real token."""

from __future__ import annotations

import base64
import os

import pytest

from hsm_kms.etcd.refusals import NO_KEY
from hsm_kms.ipc.values import KeyRef
from tests.cli.verifying import (
    dump,
    failures,
    flipped,
    two_seeds,
    v1,
    v2,
    v2_of,
    verify,
    verify_json,
)
from tests.harness.forged import forge
from tests.harness.softhsm import PIN
from tests.harness.token_keys import LABEL, create


@pytest.fixture
def node(make_plugin, hsm):
    """Provide a configuration with the KEK of the shared server; nothing runs on it."""
    return make_plugin(hsm)


def test_everything_opens(shared_server, node):
    """Seeds and DEKs of v2 and v1 are verified; values of others are not checked."""
    values = two_seeds(shared_server)
    deks = os.urandom(32), os.urandom(32)
    values |= {f"d{n}": v1(shared_server.v1_encrypt(dek)) for n, dek in enumerate(deks)}
    values |= {"e": b"\x0a\x0bclear", "f": b"k8s:enc:aescbc:v1:key1:" + bytes(32)}
    values |= {"g": v2(os.urandom(40), "https://vault/keys/1", name="vault")}

    result = verify(node, values)

    assert "" == result.stderr
    assert [
        "not checked: 1 object by aescbc 'key1'",
        "not checked: 1 object by kms v2 'vault'",
        "not checked: 1 object unencrypted",
        "each of 4 wrapped keys (5 objects) can be decrypted with this token",
    ] == sorted(result.stdout.splitlines(), key=lambda line: (line[0] == "e", line))
    assert 0 == result.returncode


def test_json(shared_server, node):
    """`verify -o json` prints the result for scripts."""
    values = two_seeds(shared_server) | {"z": b"clear"}

    assert (
        0,
        {
            "objects_read": 4,
            "objects": 3,
            "wrapped_keys": 2,
            "failed_keys": 0,
            "failed_objects": 0,
            "failures": [],
            "not_checked": [{"provider": "identity", "name": "", "objects": 1}],
            "complete": True,
        },
    ) == verify_json(node, values)


def test_restored_token_opens_everything(shared_server, make_plugin, directory):
    """A copy of the token on a new node decrypts a file of etcd's objects."""
    values = two_seeds(shared_server)
    elsewhere = make_plugin(shared_server.hsm.copy(directory / "restored"))

    result = verify(elsewhere, values)

    assert "each of 2 wrapped keys (3 objects) can be decrypted" in result.stdout
    assert 0 == result.returncode


def test_wrong_token(shared_server, make_plugin, empty_hsm):
    """A token without the key fails with key_id, counts and an example; exit 1."""
    values = two_seeds(shared_server)
    key_id = shared_server.status().key_id
    other = make_plugin(empty_hsm)
    assert 0 == other.cli("keys", "generate").returncode

    result = verify(other, values)

    assert [
        f"{key_id}: no such key on this token",
        "  2 wrapped keys in 3 objects, such as /registry/secrets/ns/a",
    ] == result.stdout.splitlines()
    assert [
        (
            "hsm-kms: 2 of 2 wrapped keys cannot be decrypted with this token: "
            "3 of 3 objects"
        )
    ] == result.stderr.splitlines()[:1]
    assert 1 == result.returncode


def test_token_without_any_key(shared_server, make_plugin, empty_hsm):
    """An empty token decrypts nothing, which is a result and not an error."""
    values = two_seeds(shared_server)
    key_id = shared_server.status().key_id

    other = make_plugin(empty_hsm)

    assert [(key_id, NO_KEY, 2, 3)] == failures(other, values)


def test_damage_is_told_apart(shared_server, node):
    """Each kind of damage has its reason, and none stops the run."""
    good = shared_server.encrypt(os.urandom(32))
    record, key_id = good.ciphertext, good.key_id
    values = {
        "1": v2(flipped(record, -1), key_id),
        "2": v2(record[:50], key_id),
        "3": v2(record, key_id + ".other"),
        "4": v2_of(good)[:60],
        "5": v2(record, key_id, data=b"short"),
        "6": v1(record[:51]),  # is counted with 2
        "7": v2_of(good),
    }

    code, shown = verify_json(node, values)

    assert 1 == code
    assert {
        ("1", key_id, "not authentic: of another scope, or damaged"),
        ("2", key_id, "the wrapped key is malformed"),
        (
            "3",
            key_id + ".other",
            "the key_id beside the record differs from that in the record",
        ),
        ("4", "", "the envelope is truncated or corrupt"),
        ("5", key_id, "the encrypted data is too short"),
    } == {
        (
            row["example"].removeprefix("/registry/secrets/ns/"),
            row["key_id"],
            row["reason"],
        )
        for row in shown["failures"]
    }
    assert (7, 6) == (shown["objects"], shown["failed_objects"])


def test_scope_of_another_cluster(shared_server, make_plugin, hsm):
    """A record of another scope cannot be decrypted; the hint names the scope."""
    values = two_seeds(shared_server)
    other = make_plugin(hsm, scope="another-cluster")

    assert [
        (
            shared_server.status().key_id,
            "not authentic: of another scope, or damaged",
            2,
            3,
        )
    ] == failures(other, values)
    assert (
        "hint: see whether `scope` in the configuration is that of the cluster that "
        "encrypted what is not authentic; if it is, keep every key and backup until "
    ) in verify(other, values).stderr


def test_retired_key(shared_server, node):
    """A record of a retired key is reported, as the server would refuse it."""
    values = two_seeds(shared_server)
    key_id = shared_server.status().key_id
    node.config["keys"]["retired"] = [key_id]
    node.write_config()

    assert [(key_id, "its key is in keys.retired", 2, 3)] == failures(node, values)


def test_forged_under_a_planted_key(shared_server, node):
    """A value under a key that somebody may know counts as one that nobody opens."""
    cka_id = b"planted"
    create(node.hsm, KeyRef(LABEL, cka_id))
    record, key_id = forge(b"d" * 32)
    ours = v2_of(shared_server.encrypt(b"d" * 32))
    values = {"forged": v2(record, key_id), "ours": ours}

    why = "its key was not generated on the token: see keys.foreign"
    assert [(key_id, why, 1, 1)] == failures(node, values)
    node.config["keys"]["also_known_as"] = {key_id: cka_id.hex()}
    node.write_config()
    assert 0 == verify(node, values).returncode


def test_nothing_of_ours_proves_nothing(node):
    """A file without values of hsm-kms is an error."""
    result = verify(node, {"a": b"clear", "b": b"k8s:enc:aescbc:v1:key1:" + bytes(32)})

    assert "nothing in 2 objects was wrapped by hsm-kms" in result.stderr
    assert 1 == result.returncode


def test_file_that_breaks_off(shared_server, node):
    """A truncated file is an error, whatever was verified before."""
    path = dump(node, two_seeds(shared_server))
    path.write_text(path.read_text()[:-30])

    result = node.cli("etcd", "verify", "--from-json", str(path))

    assert "is truncated" in result.stderr
    assert "can be decrypted" not in result.stdout
    assert 1 == result.returncode


def test_says_nothing_of_what_is_inside(shared_server, node):
    """Neither a DEK nor the PIN is printed."""
    dek = os.urandom(32)
    values = {
        "a": v2_of(shared_server.encrypt(dek)),
        "b": v1(shared_server.v1_encrypt(dek)),
    }

    result = verify(node, values)

    said = result.stdout + result.stderr
    assert 0 == result.returncode
    assert not any(
        form in said for form in (dek.hex(), base64.b64encode(dek).decode(), PIN)
    )


def test_one_wrapped_key(shared_server, node):
    """A cluster with one seed is summed up in one line."""
    value = v2_of(shared_server.encrypt(os.urandom(32)))

    result = verify(node, {"a": value, "b": value})

    assert (
        "the one wrapped key (2 objects) can be decrypted with this token\n"
        == result.stdout
    ), result.stderr
