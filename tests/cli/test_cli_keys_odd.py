"""Test `keys list` and other commands on tokens with unusual objects."""

from __future__ import annotations

import json

import pytest

from hsm_kms.clock import now
from hsm_kms.ipc.messages import Destroy, Done, FindKeys, KeyPage, Relabel
from hsm_kms.ipc.values import KeyRef
from tests.cli import keys_rig
from tests.harness.administrator import Generate, change
from tests.harness.token_keys import LABEL, create, make_key

SIGNED = ("--without-scan", "--yes")


def our_cka_id(activation, salt=b"00000000"):
    """Return a CKA_ID in the form of a key made by hsm-kms."""
    return b"hkms\x01" + int(activation).to_bytes(8, "big") + salt


@pytest.fixture
def keys(make_plugin, hsm):
    """Run the commands on a token that all nodes share, with one key."""
    return keys_rig.Keys(make_plugin(hsm, token={"shared": True}))


def test_planted(keys, hsm):
    """A key that somebody knows is called foreign, and comes after none by itself."""
    (old,) = keys.states()
    times = (now() - 3600, now() + 3600)
    for number, at in enumerate(times):
        value = bytes([number + 1]) * 32
        create(hsm, KeyRef(LABEL, our_cka_id(at)), value)
    listed = keys.json("list")

    assert [False, False] == [
        key["generated_on_token"] for key in listed if key["key_id"] != old
    ]
    assert {"foreign", "current"} == {key["state"] for key in listed}
    assert {None} == {key["becomes_current"] for key in listed}
    assert old == keys.json("rotate")["replaces"]


def test_one_time_for_two(keys, hsm):
    """If two keys have one activation time, `list` says which comes later."""
    (old,) = keys.states()
    at = now() + 3600
    for salt in (b"salt-one", b"salt-two"):
        make_key(hsm, our_cka_id(at, salt), PRIVATE=True)
    ended = keys.run("list")

    assert 2 == ended.out.count("another key has the same time")
    assert 2 == list(keys.states().values()).count("pending")
    assert old == keys.json("rotate", "--force")["replaces"]


def test_two_objects_one_name(keys, hsm):
    """Two keys with one label and one CKA_ID are told apart, and the cure is named."""
    for _ in range(2):
        make_key(hsm, b"twice", PRIVATE=True)
    ended = keys.run("list")

    ids = [key["key_id"] for key in keys.json("list")]
    assert 3 == len(set(ids) - {None})
    assert 2 == ended.out.count(b"twice".hex())
    assert 2 == ended.out.count("another key has the same CKA_LABEL and CKA_ID")


def test_cannot_be_identified(keys, hsm):
    """A key that cannot be identified is listed as refused, without a key_id."""
    make_key(hsm, b"no-encrypt", usage=("DECRYPT",), PRIVATE=True)
    [odd] = [key for key in keys.json("list") if key["key_id"] is None]

    assert ("refused", b"no-encrypt".hex()) == (odd["state"], odd["cka_id"])
    assert "CKA_ENCRYPT is False" in odd["reason"]
    assert odd["reason"] in keys.run("list").out


def test_odd_retired_labels(keys, hsm):
    """A label that only begins like a retired one does not allow to destroy the key."""
    (old,) = keys.states()
    for number, label in enumerate(("", "soon", "20990101T000000Z")):
        make_key(hsm, b"r%d" % number, label=f"{LABEL}/retired/{label}", PRIVATE=True)
    make_key(hsm, b"r9", label=f"{LABEL}/retired/x", usage=("DECRYPT",), PRIVATE=True)
    listed = {key["cka_id"]: key for key in keys.json("list")}
    told = [listed[(b"r%d" % number).hex()] for number in (0, 1, 2, 9)]

    assert ["retired"] * 4 == [key["state"] for key in told]
    assert [None, None, "2099-01-01T00:00:00Z", None] == [
        key["retired_since"] for key in told
    ]
    assert (None, True) == (told[3]["key_id"], "labelled" not in told[3]["reason"])
    for key in told[:3]:
        refused = keys.refusal(
            *("destroy", key["key_id"], "--confirm", key["key_id"]),
            *("--endpoints", "127.0.0.1:1", "--backups-expired"),
        )
        assert "24 hours" in refused or "was retired\n" in refused
    assert old in keys.states()


def test_listed_by_id(make_plugin, hsm):
    """Without a label, keys are found by CKA_ID, and only keys.retired retires them."""
    make_key(hsm, b"\x07", label="whatever", PRIVATE=True)
    make_key(hsm, b"\x08", label="", PRIVATE=True)
    section = {"label": None, "ids": ["07", "08"]}
    keys = keys_rig.Keys(make_plugin(hsm, keys=section))
    ids = {key["cka_id"]: key["key_id"] for key in keys.json("list")}
    keys.configure("keys", current=ids["07"])
    ended = keys.run("retire", ids["08"], *SIGNED)

    assert f"  retired: [{ids['08']}]\n" in ended.out
    assert "keys.label is null" in ended.err
    assert "keep its id in keys.ids until it is destroyed" in ended.err


def test_more_keys_than_fit_one_answer(keys, hsm):
    """Any number of keys is listed, page by page."""
    retired = f"{LABEL}/retired/20260101T000000Z"
    names = [KeyRef(retired, number.to_bytes(2, "big")) for number in range(120)]
    change(hsm, *(Generate(each, template={"PRIVATE": True}) for each in names))
    listed = keys.json("list")

    assert 121 == len({key["key_id"] for key in listed})
    assert 120 == [key["state"] for key in listed].count("retired")


def test_names_too_long_for_any_message(keys, hsm):
    """A key whose CKA_ID is too long for a message hides no other key."""
    (old,) = keys.states()
    make_key(hsm, b"x" * 60_000, PRIVATE=True)

    assert {old: "current", "-": "refused"} == keys.states()


def test_pages(keys, hsm):
    """A page says where the next begins, and shows keys under their new names."""
    names = [KeyRef("five", bytes([number])) for number in range(5)]
    change(hsm, *(Generate(each, template={"PRIVATE": True}) for each in names))
    ref, after = KeyRef("five", b"\x00"), KeyRef("six", b"\x00")
    find = FindKeys(label="five", limit=2)
    pages = [FindKeys(label="five", limit=2, skip=skip) for skip in (2, 4)]
    first, *others, relabelled, found, destroyed, gone = keys_rig.ask_worker(
        keys.plugin,
        [
            *(find, *pages, Relabel(ref=ref, label="six"), FindKeys(label="six")),
            *(Destroy(ref=after), FindKeys(label="si", prefix=True)),
        ],
    )

    assert [2, 4, None] == [page.next for page in (first, *others)]
    seen = [key.ref.cka_id for page in (first, *others) for key in page.keys]
    assert [bytes([number]) for number in range(5)] == sorted(seen)
    assert [Done(), Done(), KeyPage(keys=())] == [relabelled, destroyed, gone]
    assert [after] == [key.ref for key in found.keys]


def test_json_of_leftovers(keys, hsm):
    """A leftover has the same JSON members as a key."""
    keygen = ("--keygen", "--key-type", "GENERIC:32", "--label", f"{LABEL}-hmac")
    hsm.pkcs11_tool(*keygen, "--id", b"loneh".hex(), "--sensitive", "--private")
    key, half = keys.json("list")

    assert set(key) == set(half)
    assert ("unfinished", b"lone".hex(), None) == (
        half["state"],
        half["cka_id"],
        half["key_id"],
    )
    assert json.dumps(half) not in keys.run("list").out


@pytest.mark.parametrize(
    "command",
    [
        ("cancel", "--yes"),
        ("retire", *SIGNED),
        ("destroy", "--confirm", "KEY_ID", "--endpoints", "127.0.0.1:1"),
    ],
    ids=lambda command: command[0],
)
def test_state_that_cannot_be_believed(keys, command):
    """If a state file is corrupt, no command deletes a key."""
    new = keys.rotate()
    (keys.plugin.state_dir / "last-key.json").write_text("{")
    name, *options = (new if word == "KEY_ID" else word for word in command)
    said = keys.refusal(name, new, *options)

    assert "is not a state file of version 1" in said
    assert new in keys.states()


def test_partner_that_must_not_change(make_plugin, empty_hsm):
    """A key is retired even if the label of its HMAC key cannot change."""
    section = {"mechanism": "aes-cbc-hmac-sha256"}
    keys = keys_rig.Keys(make_plugin(empty_hsm, keys=section))
    make_key(empty_hsm, b"old", PRIVATE=True)
    fixed = {"PRIVATE": True, "MODIFIABLE": False}
    partner = KeyRef(f"{LABEL}-hmac", b"oldh")
    mac = Generate(partner, 256, ("SIGN", "VERIFY"), fixed, "GENERIC_SECRET")
    change(empty_hsm, mac)
    (old,) = keys.states()
    new = keys.generate("--another")
    keys.configure("keys", current=new)
    ended = keys.run("retire", old, *SIGNED)

    assert (0, True) == (ended.code, "which does no harm" in ended.err)
    assert {old: "retired", new: "current"} == keys.states()
    assert 0 == keys.run("retire", old, *SIGNED).code
    assert "k8s-kek" == keys.json("retire", old, "--undo")["label"]
    assert {old: "decrypt-only", new: "current"} == keys.states()
