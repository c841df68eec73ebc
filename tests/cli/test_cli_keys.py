"""`keys rotate | retire | destroy` over the life of a key."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta

import pytest

from hsm_kms.clock import now
from tests.cli.keys_rig import Keys, etcd_json, stored_value
from tests.harness.plugin import code_of
from tests.harness.token_keys import make_key
from tests.harness.wait import wait_for

LABEL = "k8s-kek"
UNREACHABLE = ("--endpoints", "127.0.0.1:1")
SIGNED = ("--without-scan", "--yes")


@pytest.fixture
def keys(make_plugin, hsm):
    """Run the commands on a token that all nodes share, with one key."""
    return Keys(make_plugin(hsm, token={"shared": True}, keys={"discover": "1s"}))


@pytest.fixture
def two(make_plugin, aes_keys, directory):
    """Run the commands with a second key, which keys.current names."""
    hsm, token = aes_keys.both.copy(directory / "two"), {"shared": True}
    keys = Keys(make_plugin(hsm, token=token, keys={"discover": "1s"}))
    keys.use(aes_keys.old, aes_keys.new)
    return keys


def test_rotate_json(keys):
    """A new key is pending until the time in its CKA_ID and in the output."""
    (old,) = keys.states()
    before = now()
    made = keys.json("rotate", "--activate-in", "3m")

    assert {"key_id", "cka_id", "activation", "activation_time", "replaces"} == set(
        made
    )
    assert (old, made["activation"]) == (
        made["replaces"],
        int(made["cka_id"][10:26], 16),
    )
    assert before + 179 <= made["activation"] <= now() + 180
    assert {old: "current", made["key_id"]: "pending"} == keys.states()
    assert made["activation_time"] == keys.json("list")[1]["becomes_current"]


def test_rotate_by_force(keys):
    """A second pending key, or one active at once, needs --force."""
    (old,) = keys.states()
    refused = keys.refusal("rotate", "--activate-in", "1s")
    first = keys.rotate()
    assert "is already pending" in keys.refusal("rotate")
    second = keys.rotate("--force", "--activate-in", "0s")

    assert "or --force to do it anyway" in refused
    assert {old: "decrypt-only", first: "pending", second: "current"} == keys.states()


def test_rotate_too_far(keys):
    """An activation time more than a year ahead is refused."""
    assert "at most 366d" in keys.refusal("rotate", "--activate-in", "600d", code=2)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("token", {"shared": False}, "token.shared is false"),
        ("keys", {"current": "a" * 26}, "keys.current names aaa"),
        ("keys", {"ids": ["ff"]}, "keys.ids lists the CKA_IDs"),
    ],
    ids=["not shared", "named", "listed"],
)
def test_rotate_refused(keys, section, values, words):
    """If activation times do not count, `rotate` generates no key."""
    keys.configure(section, **values)

    assert words in keys.refusal("rotate")


def test_rotate_behind_the_current_key(make_plugin, empty_hsm):
    """If the clock is behind the current key's time, `rotate` generates no key."""
    later = int(now()) + 86400
    make_key(empty_hsm, b"hkms\x01" + later.to_bytes(8, "big") + bytes(8), PRIVATE=True)
    plugin = make_plugin(empty_hsm, token={"shared": True})
    keys = Keys(plugin)
    (key_id,) = keys.states()
    keys.configure("keys", current=key_id)
    plugin.start().wait_healthz("ok")
    plugin.stop()
    keys.configure("keys", current=None)

    assert "check whether the clock of this node is right" in keys.refusal("rotate")


def test_retire_and_undo(two):
    """A retired key does not decrypt; after --undo it does again."""
    plugin = two.plugin
    two.configure("keys", current=two.old)
    plugin.start().wait_healthz("ok")
    sealed = plugin.encrypt(b"d" * 32)
    two.configure("keys", current=two.new)
    plugin.process.send_signal(signal.SIGHUP)
    wait_for(lambda: two.new == plugin.status().key_id)
    shown = two.json("retire", two.old, *SIGNED)
    wait_for(lambda: "FAILED_PRECONDITION" == code_of(lambda: opened(plugin, sealed)))

    assert shown["label"].startswith("k8s-kek/retired/20")
    assert (two.old, None) == (shown["key_id"], shown["keys_retired"])
    assert {two.new: "current", two.old: "retired"} == two.states()
    assert shown["retired_since"] == two.json("list")[1]["retired_since"]
    assert (
        f"{two.old} has been retired since" in two.run("retire", two.old, *SIGNED).out
    )
    back = two.json("retire", two.old, "--undo")
    assert (LABEL, None) == (back["label"], back["retired_since"])
    wait_for(lambda: "OK" == code_of(lambda: opened(plugin, sealed)))
    assert {two.old: "decrypt-only", two.new: "current"} == two.states()
    assert "is not retired" in two.refusal("retire", two.old, "--undo")
    assert "ok" == plugin.healthz()


def opened(plugin, sealed):
    return plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_retire_looks_into_etcd(two, tmp_path, monkeypatch):
    """`retire` refuses if an object is stored under the key, or nothing was scanned."""
    plugin = two.plugin
    two.configure("keys", current=two.old)
    plugin.start().wait_healthz("ok")
    under_old = stored_value(plugin)
    plugin.stop()
    two.configure("keys", current=two.new)
    plugin.start().wait_healthz("ok")
    under_new = stored_value(plugin)
    monkeypatch.delenv("ETCDCTL_ENDPOINTS", raising=False)
    both = etcd_json(tmp_path / "both", under_old, under_new, under_old)
    one = etcd_json(tmp_path / "one", under_new, b"k8s:enc:kms:v2:x:\xff")

    assert "--without-scan" in two.refusal("retire", two.old, "--yes", code=2)
    assert f"2 of 3 objects in {both[1]} are stored under {two.old}" in two.refusal(
        "retire", two.old, "--yes", *both
    )
    assert "127.0.0.1:1" in two.refusal("retire", two.old, "--yes", *UNREACHABLE)
    assert "decrypt-only" == two.states()[two.old]
    ended = two.run("retire", two.old, "--yes", *one)
    assert (0, True) == (ended.code, "none of 2 objects" in ended.err)
    assert "1 of them cannot be parsed" in ended.err
    assert "retired" == two.states()[two.old]


def test_retire_refused(keys):
    """`retire` refuses the current key, a pending key and the key in keys.current."""
    (old,) = keys.states()
    new = keys.rotate()

    assert "encrypts with" in keys.refusal("retire", old, *SIGNED)
    assert f"{new} is pending" in keys.refusal("retire", new, *SIGNED)
    assert f"no key {'a' * 26} is on the token" in keys.refusal(
        "retire", "a" * 26, *SIGNED
    )
    keys.configure("keys", current=new)
    keys.plugin.start().wait_healthz("ok")
    keys.plugin.stop()
    keys.configure("keys", current=old)  # and the state directory holds the new one
    assert "encrypts with" in keys.refusal("retire", new, *SIGNED)


def test_retire_what_must_not_change(make_plugin, empty_hsm):
    """If labels cannot change, `retire` prints keys.retired and records the time."""
    fixed = {"PRIVATE": True, "MODIFIABLE": False}
    make_key(empty_hsm, b"old", **fixed)
    keys = Keys(make_plugin(empty_hsm, keys={"discover": "1s"}))
    (old,) = keys.states()
    new = keys.generate("--another")
    keys.configure("keys", current=new)
    ended = keys.run("retire", old, *SIGNED)

    assert 0 == ended.code
    assert f"keys:\n  retired: [{old}]\n" == ended.out
    assert "C_SetAttributeValue returned CKR_ACTION_PROHIBITED" in ended.err
    assert "decrypt-only" == keys.states()[old]
    keys.configure("keys", retired=[old])
    [shown] = [key for key in keys.json("list") if key["key_id"] == old]
    assert ("retired", True) == (shown["state"], bool(shown["retired_since"]))
    assert "has been retired since" in keys.run("retire", old, *SIGNED).out
    assert "less than 24 hours ago" in keys.refusal(
        "destroy", old, "--confirm", old, *UNREACHABLE
    )
    noted = keys.plugin.state_dir / "keys.json"
    day = datetime.now(UTC) - timedelta(hours=25)
    file = json.loads(noted.read_text())
    file["retired"][0]["since"] = day.isoformat(timespec="seconds")
    noted.write_text(json.dumps(file))
    assert "backups may still need the key" in keys.refusal(
        "destroy", old, "--confirm", old, *UNREACHABLE
    )
    noted.write_text("{")
    assert "is not a state file" in keys.refusal(
        "destroy", old, "--confirm", old, *UNREACHABLE
    )
    assert "leftovers of earlier commands are unknown" in keys.run("list").err
    noted.unlink()
    assert "this node does not know when" in keys.refusal(
        "destroy", old, "--confirm", old, *UNREACHABLE
    )


def test_advice_after_90_days(make_plugin, empty_hsm):
    """`list` advises to rotate a current key that is older than 90 days."""
    young = Keys(make_plugin(empty_hsm))
    old = int(now()) - 91 * 86400
    make_key(empty_hsm, b"hkms\x01" + old.to_bytes(8, "big") + bytes(8), PRIVATE=True)
    told = young.run("list")
    young.generate("--another")
    young.configure("keys", current=young.json("list")[1]["key_id"])

    assert "the current key is 91 d old; rotate it at least every 90 d" in told.err
    assert "  91 d " in told.out
    assert "" == young.run("list").err
