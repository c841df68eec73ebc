"""Conformance, "Decrypt", items 38 and 39: what an attacker may write into etcd."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsm_kms.wrapping.record import Kind
from tests.system.conformance.clients import (
    BAD_REQUEST,
    DEK,
    NOT_AUTHENTIC,
    NOT_HELD,
    SENTENCES,
    STRANGER,
    Said,
    all_said,
    connected,
    said,
    shaped,
    shaped_local,
    unharmed,
)
from tests.system.conformance.wire import field
from tests.system.conformance.wrappings import both_kinds, in_software

CODES = {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}
MIB = 1 << 20


def annotation(name: bytes, value: bytes) -> bytes:
    """Return one annotation of a DecryptRequest."""
    return field(4, field(1, name) + field(2, value))


async def each_said(plugin, requests: list[bytes]) -> list[Said]:
    """Send serialised requests, which must harm neither server nor workers."""
    with unharmed(plugin):
        async with connected(plugin) as (client,):
            return [await said(client.raw_decrypt(request)) for request in requests]


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {"some.name": b""},
        {"some.name": b"\0\xff" * 8000},
        {"": b"no name"},
        {"NOT a legal/name\n": b"x"},
        {f"n{number}.example": b"v" for number in range(1000)},
    ],
    ids="none one large unidentified illegal many".split(),  # noqa: SIM905
)
async def test_38_annotations_of_others(served, annotations):
    """Decrypt ignores annotations, and needs none."""
    async with connected(served) as (client,):
        sealed = await client.encrypt()
        opened = await client.decrypt(
            sealed.ciphertext, sealed.key_id, annotations=annotations
        )

    assert {} == dict(sealed.annotations)
    assert DEK == opened


async def test_39_four_mebibytes_of_ciphertext(served):
    """A ciphertext larger than any record is refused."""
    key_id = served.status().key_id.encode()
    told = await each_said(
        served, [field(1, bytes(4 * MIB)) + field(3, key_id) for _ in range(5)]
    )

    assert [BAD_REQUEST] * 5 == told


async def test_39_too_large_for_any_field(served):
    """A request beyond the message limit is refused, and the server keeps running."""
    (told,) = await each_said(served, [field(1, bytes(5 * MIB))])

    assert "RESOURCE_EXHAUSTED" == told.code


@pytest.mark.parametrize(
    ("annotations", "fits"),
    [
        (annotation(b"a.b", bytes(32765)), True),
        (annotation(b"a.b", bytes(32766)), False),
        (annotation(bytes(b"n" * 32768), b""), True),
        (annotation(bytes(b"n" * 32769), b""), False),
        (b"".join(annotation(b"%d" % n, b"") for n in range(40_000)), False),
        (annotation(b"a.b", bytes(4 * MIB)), False),
        (annotation(b"same", b"x" * 1000) * 1000, True),
    ],
    ids="32KiB more name longer-name many 4MiB one-name".split(),  # noqa: SIM905
)
async def test_39_annotations(served, annotations, fits):
    """Annotations beyond the API server's limits are refused."""
    sealed = served.encrypt(DEK)
    request = field(1, sealed.ciphertext) + field(3, sealed.key_id.encode())
    (told,) = await each_said(served, [request + annotations])

    assert (("OK", "") if fits else BAD_REQUEST) == told


@both_kinds
@pytest.mark.parametrize(
    "key_id",
    [
        b"\0",
        b"a" * 25 + b"\0",
        b"/etc/shadow",
        b"pkcs11:object=k8s-kek",
        b"%s%n",
        b"' or 1=1 --",
        "\N{SNOWMAN}\u202e\U0010ffff".encode(),
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"k" * 1024,
        b"k" * 1025,
        b"k" * MIB,
    ],
    ids=lambda key_id: f"{key_id[:26]!r}-{len(key_id)}",
)
async def test_39_odd_key_ids(served, key_id):
    """A malicious key_id is refused and does no harm."""
    good = served.encrypt(DEK).ciphertext
    told = await each_said(served, [field(1, good) + field(3, key_id)])

    assert {BAD_REQUEST, NOT_AUTHENTIC} >= set(told)


@both_kinds
async def test_39_other_kinds(served):
    """Local KEKs, canaries and DEKs by unknown local KEKs are refused."""
    held = served.status().key_id
    records = []
    for key_id in (held, STRANGER):
        records += [
            (key_id, shaped(Kind.LOCAL_KEK_BY_TOKEN, key_id)),
            (key_id, shaped(Kind.CANARY, key_id)),
            (key_id, shaped_local(key_id)),
        ]
    told = await each_said(
        served, [field(1, record) + field(3, name.encode()) for name, record in records]
    )

    assert [NOT_AUTHENTIC] * 2 == told[:2]
    assert {NOT_AUTHENTIC, NOT_HELD} >= set(told)


@both_kinds
async def test_39_good_record_as_another_kind(served):
    """A good record is not accepted under another kind, version or algorithm."""
    sealed = served.encrypt(DEK)
    changed = [
        sealed.ciphertext[:at] + bytes([value]) + sealed.ciphertext[at + 1 :]
        for at in range(3)
        for value in range(256)
        if value != sealed.ciphertext[at]
    ]
    async with connected(served) as (client,):
        told = await all_said(client.decrypt(each, sealed.key_id) for each in changed)

    assert {NOT_AUTHENTIC: 3 * 255} == told


# What an attacker may put together: parts of the right shape beside any bytes.
key_ids = st.one_of(
    st.just(STRANGER.encode()),
    st.binary(max_size=40),
    st.text(max_size=40).map(str.encode),
)
parts = st.one_of(
    st.builds(lambda data: field(1, data), st.binary(max_size=200)),
    st.builds(
        lambda kind: field(1, shaped(kind, STRANGER)),
        st.sampled_from([Kind.DEK_BY_TOKEN, Kind.LOCAL_KEK_BY_TOKEN, Kind.CANARY]),
    ),
    st.builds(lambda: field(1, shaped_local(STRANGER))),
    st.builds(lambda data: field(3, data), key_ids),
    st.builds(annotation, st.binary(max_size=20), st.binary(max_size=100)),
    st.builds(field, st.integers(1, 1 << 28), st.binary(max_size=20)),
    st.binary(min_size=1, max_size=20),
)


@in_software
@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(parts, max_size=6), min_size=20, max_size=40))
def test_39_fuzzed_requests(served, messages):
    """Every fuzzed request is refused with a fixed message and ends no process."""
    requests = [b"".join(message) for message in messages]
    for told in asyncio.run(each_said(served, requests)):
        assert told.code in CODES
        assert told.sentence in SENTENCES


@both_kinds
async def test_39_hostile_beside_honest(served):
    """Honest clients get their own DEKs while others send forged records."""
    deks = [os.urandom(32) for _ in range(16)]
    held = served.status().key_id
    rubbish = [shaped(Kind.DEK_BY_TOKEN, held) for _ in range(250)]
    rubbish += [shaped_local(held) for _ in range(250)]
    with unharmed(served):
        async with connected(served, 2) as (honest, hostile):
            sealed = [await honest.encrypt(dek) for dek in deks]
            storm = asyncio.create_task(
                all_said(hostile.decrypt(record, held) for record in rubbish)
            )
            opened = []
            while not storm.done():
                opened += [
                    await honest.decrypt(each.ciphertext, each.key_id)
                    for each in sealed
                ]

    assert {NOT_AUTHENTIC: 500} == storm.result()
    assert deks * (len(opened) // 16) == opened
    assert opened
