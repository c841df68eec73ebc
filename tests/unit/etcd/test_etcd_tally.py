"""Test counting of objects by resource, provider and key, in bounded memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.etcd import tally as counting
from hsm_kms.etcd.source import Item
from hsm_kms.etcd.tally import Tally
from tests.harness.etcd_samples import KEY_ID, OTHER_KEY_ID, record, v1, v2

IN_CLEAR = b"k8s\0in clear"


def tally_of(objects, **given) -> Tally:
    """Return a tally of these objects."""
    tally = Tally(**given)
    for key, value in objects:
        tally.add(Item(f"/registry/{key}".encode(), value))
    return tally


def test_rows():
    """Objects of the same resource, provider, name, key_id and kind are one row."""
    tally = tally_of(
        [
            *((f"secrets/n/{n}", v2()) for n in range(3)),
            ("secrets/n/local", v2(record(local=True))),
            ("secrets/n/v1", v1()),
            ("configmaps/n/other", v2(b"foreign", "aws", key_id="arn:1")),
            ("example.com/widgets/n/w", b"k8s:enc:aescbc:v1:key1:" + bytes(32)),
        ]
    )
    rows = [(each.objects, each.row) for each in tally.rows()]

    assert [
        (1, "configmaps", "kms v2", "v2", "aws", "arn:1", ""),
        (1, "secrets", "kms v2", "v2", "hsm", KEY_ID, "local KEK"),
        (3, "secrets", "kms v2", "v2", "hsm", KEY_ID, "token"),
        (1, "secrets", "kms v1", "v1", "hsm-v1", KEY_ID, "local KEK"),
        (1, "widgets.example.com", "aescbc", "v1", "key1", None, ""),
    ] == sorted(
        [
            (n, r.resource, r.provider, r.version, r.name, r.key_id, r.kind)
            for n, r in rows
        ],
        key=lambda row: (row[1], row[4], row[6]),
    )
    assert {KEY_ID: 5, "arn:1": 1} == tally.keys()
    assert (7, 0, 0) == (tally.total, tally.unencrypted, tally.unreadable)


def test_a_key_counts_whatever_its_suffix():
    """key_ids with different suffixes have separate rows, but count as one key."""
    tally = tally_of(
        [
            ("secrets/n/a", v2(key_id=KEY_ID)),
            ("secrets/n/b", v2(key_id=f"{KEY_ID}.2026a")),
            ("secrets/n/c", v1(record(f"{KEY_ID}.b"))),
            ("secrets/n/d", v2(key_id=OTHER_KEY_ID)),
        ]
    )

    assert [3, 3, 1] == [
        tally.of_key(KEY_ID),
        tally.of_key(f"{KEY_ID}.never"),
        tally.of_key(OTHER_KEY_ID),
    ]
    assert 0 == tally.of_key("c" * 25 + "a")
    assert 4 == len(tally.rows())


def test_a_key_beside_a_record_of_another():
    """A value whose record names another key counts under both keys."""
    tally = tally_of([("secrets/n/a", v2(record(OTHER_KEY_ID), key_id=KEY_ID))])

    assert (1, 1) == (tally.of_key(KEY_ID), tally.of_key(OTHER_KEY_ID))
    assert 1 == tally.unreadable


def test_what_is_in_clear_and_should_not_be():
    """Unencrypted objects that should be encrypted come first."""
    objects = [
        ("secrets/n/a", v2()),
        ("secrets/n/b", IN_CLEAR),
        ("configmaps/n/a", v2()),
        ("configmaps/n/b", IN_CLEAR),
        ("pods/n/a", IN_CLEAR),
        ("example.com/widgets/n/a", IN_CLEAR),
        ("leases/n/a", IN_CLEAR),
        ("secrets/n/c", b"k8s:enc:kms:v2:hsm:cut"),
    ]
    tally = tally_of(objects, resources=["widgets.example.com"])
    rows = [(each.row.resource, each.exposed) for each in tally.rows()]

    assert 3 == tally.unencrypted
    assert [
        ("configmaps", True),
        ("secrets", True),
        ("widgets.example.com", True),
        ("secrets", False),  # with its problem
        ("configmaps", False),
        ("secrets", False),
        ("leases", False),
        ("pods", False),
    ] == rows


@pytest.mark.parametrize("objects", [[], [("pods/n/a", IN_CLEAR)]])
def test_nothing_encrypted_at_all(objects):
    """Unencrypted Secrets count even if no Secret is encrypted."""
    tally = tally_of([*objects, ("secrets/n/a", IN_CLEAR)])

    assert 1 == tally.unencrypted


def test_an_example_of_each_row():
    """Each row has the key of one of its objects."""
    tally = tally_of([("secrets/n/first", v2()), ("secrets/n/second", v2())])

    assert [b"/registry/secrets/n/first"] == [each.example for each in tally.rows()]


def forged(number: int) -> str:
    """Return a key_id in the form of hsm-kms, a different one for each number."""
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    digits = [letters[number >> shift & 31] for shift in (0, 5, 10, 15)]
    return "".join(digits) + "b" * 21 + "a"


def test_key_ids_without_end(monkeypatch):
    """Forged key_ids fill a limited number of rows; a watched key counts exactly."""
    monkeypatch.setattr(counting, "MAX_ROWS", 1000)
    given = [
        (f"secrets/n/{n}", v2(record(forged(n)), key_id=forged(n))) for n in range(1500)
    ]
    given.append(("secrets/n/z", v2()))
    tracemalloc.start()
    try:
        watched = tally_of(given, watch=[f"{KEY_ID}.suffix"])
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    unwatched = tally_of(given)

    assert (1000, 501) == (len(watched.rows()), watched.others)
    assert 1501 == watched.total
    assert 1 == watched.of_key(KEY_ID)
    assert 1 == watched.of_key(forged(5))
    assert 501 == unwatched.of_key(KEY_ID)  # as many as there could be
    assert 2 * 1024**2 > size


def test_long_text_is_cut():
    """Rows truncate long names, key_ids and keys."""
    long = "n" * 1024
    tally = tally_of(
        [
            (long * 3, v2(b"x", long, key_id=long)),
            ("a", v1(b"y" * 9, long.encode())),
            ("b", b"k8s:enc:" + b"u" * 5000),
        ]
    )

    for each in tally.rows():
        assert 300 > len(each.row.name)
        assert 300 > len(each.row.key_id or "")
        assert 800 > len(each.example) + len(each.row.resource)


@given(st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=80)), max_size=20))
def test_any_objects(objects):
    """Any keys and values are counted, each once."""
    tally = Tally()
    for key, value in objects:
        tally.add(Item(key, value))
        tally.add(Item(key, b"k8s:enc:kms:v1:" + value))

    assert 2 * len(objects) == tally.total == sum(e.objects for e in tally.rows())
