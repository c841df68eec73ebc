"""Test parsing of one stored value without a key, for any bytes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsm_kms.etcd import values
from hsm_kms.etcd.text import printable
from hsm_kms.etcd.values import Provider, explain
from tests.harness.etcd_samples import (
    DEK_DATA,
    KEY_ID,
    OTHER_KEY_ID,
    SEED_DATA,
    envelope,
    field,
    record,
    v1,
    v2,
)
from tests.harness.examples import examples

ETCD_VALUE_BYTES = 1536 * 1024  # etcd's own limit on a request
PREFIXES = [
    b"",
    b"k8s:enc:",
    b"k8s:enc:kms:v2:",
    b"k8s:enc:kms:v2:hsm:",
    b"k8s:enc:kms:v1:",
    b"k8s:enc:kms:v1:hsm:\0\x40",
    b"k8s:enc:aescbc:v1:",
    b"k8s:enc:aesgcm:v1:key1:",
    b"k8s:enc:secretbox:v1:key1:",
]
SENTENCES = {
    "",
    *(
        value
        for name, value in vars(values).items()
        if name.isupper() and isinstance(value, str)
    ),
}


def bounded(value):
    """Explain a value, and check what is guaranteed for any value."""
    stored = explain(value)
    assert stored.problem in SENTENCES
    assert len(stored.annotations) <= values.MAX_ANNOTATIONS
    assert all(map(str.isascii, printable(stored.name)))
    assert repr(stored)
    return stored


@given(st.sampled_from(PREFIXES), st.binary(max_size=2000))
@settings(max_examples=examples(100, 2000))
def test_any_bytes_are_explained(prefix, rest):
    """Any bytes are explained, and the problem is one of the fixed messages."""
    bounded(prefix + rest)


@given(
    st.sampled_from([v2(), v2(record(local=True)), v1(), v1(record(), b"a:b:c")]),
    st.integers(0, 400),
    st.binary(min_size=1, max_size=3),
)
@settings(max_examples=examples(100, 2000))
def test_a_good_value_with_bytes_exchanged(value, at, garbage):
    """A value of hsm-kms with changed bytes is still explained."""
    at %= len(value)
    stored = bounded(value[:at] + garbage + value[at + len(garbage) :])

    if stored.record and stored.provider is Provider.KMS_V2:
        assert stored.key_id == stored.record.header.key_id


@pytest.mark.parametrize("value", [v2(), v1()], ids=["v2", "v1"])
def test_a_value_cut_anywhere(value):
    """A truncated value of hsm-kms has a problem, or counts as another's."""
    for end in range(len(value)):
        stored = bounded(value[:end])
        data = len(SEED_DATA) if stored.version == "v2" else 28
        whole = stored.record and stored.data_bytes >= data
        assert stored.problem or whole or stored.provider is not explain(value).provider


def test_kms_v2():
    """A v2 value shows provider, key_id, record, kind and what is wrapped."""
    stored = explain(v2())

    assert (Provider.KMS_V2, "v2", "hsm") == (
        stored.provider,
        stored.version,
        stored.name,
    )
    assert KEY_ID == stored.key_id
    assert record() == stored.wrapped == stored.record.encode()
    assert ("token", "seed", "") == (stored.kind, stored.source, stored.problem)
    assert len(SEED_DATA) == stored.data_bytes


def test_kms_v2_as_1_27_wrote_it():
    """Without a type of seed, a v2 value contains a DEK."""
    wrapped = record(local=True)
    stored = explain(v2(wrapped, data=DEK_DATA, source=0, annotations={"a.b/c": b"1"}))

    assert ("local KEK", "DEK", "") == (stored.kind, stored.source, stored.problem)
    assert ("a.b/c",) == stored.annotations


def test_kms_v2_of_another_plugin():
    """A wrapped seed that is no record of hsm-kms is another plugin's."""
    stored = explain(v2(b"\x0a\x20AQICAH", "aws", key_id="arn:aws:kms:eu:1:key/2"))

    assert (None, "") == (stored.record, stored.kind)
    assert ("arn:aws:kms:eu:1:key/2", "") == (stored.key_id, stored.problem)


def test_kms_v2_with_another_key_id_beside_the_record():
    """If the two key_ids differ, both are shown, and the record does not count."""
    stored = explain(v2(record(OTHER_KEY_ID)))

    assert values.CONTRADICTION == stored.problem
    assert stored.record is None
    assert (KEY_ID, OTHER_KEY_ID) == (stored.key_id, stored.other_key_id)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"", values.NO_KEY_ID),
        (b"\xff", values.GARBLED),
        (envelope(record())[:-20], values.GARBLED),
        (envelope(record(), data=b""), values.SHORT_DATA),
        (envelope(record(), data=bytes(59)), values.SHORT_DATA),
        (envelope(record(), data=bytes(27), source=0), values.SHORT_DATA),
        (envelope(record(), source=2), values.SOURCE_UNKNOWN),
        (envelope(record(), key_id=""), values.NO_KEY_ID),
        (envelope(b"x", key_id="k" * 1025), values.LONG_KEY_ID),
        (envelope(b""), values.NO_WRAPPED),
        (envelope(bytes(1025)), values.LONG_WRAPPED),
        (field(2, b"\xff\xfe") + field(3, record()), values.GARBLED),
    ],
)
def test_kms_v2_that_nothing_can_open(message, problem):
    """A v2 value that the API server would refuse has a problem."""
    stored = explain(b"k8s:enc:kms:v2:hsm:" + message)

    assert problem == stored.problem
    assert "hsm" == stored.name


@pytest.mark.parametrize(
    "name", [b"hsm", b"kms:prod", b"a:b:c", b"x" * 300, b"in:\xc3\xbc"]
)
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("size", [28, 500, 60_000])
def test_kms_v1_finds_where_its_name_ends(name, local, size):
    """A record of hsm-kms shows where a name with colons ends."""
    data = (b"::\0\1:" * size)[:size]
    stored = explain(v1(record(local=local), name, data))

    assert (Provider.KMS_V1, "v1") == (stored.provider, stored.version)
    assert (name.decode(), KEY_ID, "") == (stored.name, stored.key_id, stored.problem)
    assert record(local=local) == stored.wrapped
    assert ("DEK", size) == (stored.source, stored.data_bytes)


@pytest.mark.parametrize("name", ["vault", "kms:prod"])
def test_kms_v1_of_another_plugin(name):
    """Without a record of hsm-kms, the likeliest end of the name is assumed."""
    stored = explain(v1(os.urandom(64), name.encode(), bytes(40_000)))

    assert (name, None, None) == (stored.name, stored.key_id, stored.record)
    assert (64, "") == (len(stored.wrapped), stored.problem)


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        (b"", values.CUT),
        (b"hsm", values.CUT),
        (b"hsm:", values.CUT),
        (b"hsm:\0", values.CUT),
        (b"hsm:\0\x50" + record(), values.CUT),
        (b"hsm:\0\0" + bytes(100), values.CUT),
        (b"x" * 2000, values.NO_NAME),
        (b":\0\1" + bytes(100), values.NO_NAME),
        (b"\xff\xfe:\0\1" + bytes(100), values.NAME_NOT_TEXT),
    ],
)
def test_kms_v1_that_nothing_can_open(rest, problem):
    """A v1 value that is truncated or has no name has a problem."""
    assert problem == explain(b"k8s:enc:kms:v1:" + rest).problem


@pytest.mark.parametrize(
    ("provider", "least"),
    [(Provider.AESCBC, 32), (Provider.AESGCM, 28), (Provider.SECRETBOX, 40)],
)
def test_providers_with_a_key_of_their_own(provider, least):
    """aescbc, aesgcm and secretbox show the key's name and a wrong length."""
    prefix = f"k8s:enc:{provider}:v1:key1:".encode()
    good, short = explain(prefix + bytes(least)), explain(prefix + bytes(least - 1))

    assert (provider, "v1", "key1", "") == (
        good.provider,
        good.version,
        good.name,
        good.problem,
    )
    assert values.SHORT_DATA == short.problem
    assert values.CUT == explain(prefix.removesuffix(b":")).problem


def test_aescbc_in_blocks():
    """The data of aescbc must be a whole number of blocks."""
    stored = explain(b"k8s:enc:aescbc:v1:key1:" + bytes(33))

    assert values.PART_BLOCK == stored.problem


@pytest.mark.parametrize(
    "value", [b"", b"k8s\0\n\x0c\n\x02v1", b'{"kind":"Secret"}', b"k8s:en", b"\xff"]
)
def test_in_clear(value):
    """A value without the prefix of encrypted values is unencrypted."""
    stored = explain(value)

    assert (Provider.IDENTITY, "", len(value)) == (
        stored.provider,
        stored.name,
        stored.data_bytes,
    )


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        (b"kms:v3:hsm:rest", "kms:v3"),
        (b"chacha:v1:key:rest", "chacha:v1"),
        (b"", ""),
        (b"\x1b[2J\xff:v1:", "\x1b[2J\\xff:v1"),
    ],
)
def test_unknown_prefix(rest, name):
    """An encrypted value of an unknown provider is named by its prefix."""
    stored = explain(b"k8s:enc:" + rest)

    assert (Provider.UNKNOWN, name) == (stored.provider, stored.name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "value",
    [
        b"k8s:enc:kms:v1:" + b":\0\2" * (ETCD_VALUE_BYTES // 3),
        b"k8s:enc:kms:v1:" + b":\x01\x00\1\1\1\x1a" * (ETCD_VALUE_BYTES // 7),
        b"k8s:enc:kms:v2:" + b"x" * ETCD_VALUE_BYTES,
        b"k8s:enc:kms:v2:hsm:" + field(4, b"") * (ETCD_VALUE_BYTES // 2),
        b"k8s:enc:kms:v2:hsm:" + b"\x0b" * ETCD_VALUE_BYTES,
        v2(data=bytes(ETCD_VALUE_BYTES)),
        v2(key_id="k" * ETCD_VALUE_BYTES, wrapped=record()),
        v1(data=bytes(ETCD_VALUE_BYTES)),
        v2(annotations={f"{n}.example.com": b"" for n in range(40_000)}),
        b"k8s:enc:" + b"\x1b" * ETCD_VALUE_BYTES,
        bytes(ETCD_VALUE_BYTES),
    ],
    ids=range(11),
)
def test_as_long_as_etcd_takes(value):
    """Values of 1.5 MiB are explained quickly, whatever they contain."""
    for _ in range(20):
        bounded(value)
