"""Conformance, "Decrypt": items 33 to 36; 38 and 39 are in the next file."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial

import pytest

from hsm_kms.errors import CiphertextError
from hsm_kms.wrapping.record import Kind, Record
from tests.harness.plugin import beside
from tests.system.conformance.clients import (
    BAD_REQUEST,
    DEK,
    NOT_AUTHENTIC,
    NOT_HELD,
    STRANGER,
    all_said,
    connected,
    shaped,
    shaped_local,
    sync_said,
    unharmed,
)
from tests.system.conformance.inside import restart, start_well
from tests.system.conformance.replica import Replica
from tests.system.conformance.tokens import import_kek
from tests.system.conformance.wire import field
from tests.system.conformance.wrappings import WRAPPINGS, apis, both_kinds
from tests.unit.wrapping.test_vectors import VECTORS, load

KEK = bytes(range(32))
SCOPE = "prod-eu"
REFUSED = {BAD_REQUEST, NOT_AUTHENTIC, NOT_HELD}


def vectors(folder: str, *kinds: str):
    """Return the record vectors made for the KEK and scope of `fixtures`."""
    loaded = {
        path.stem: load(path)
        for kind in kinds or ("*",)
        for path in (VECTORS / "record" / folder).glob(kind)
    }
    return [
        pytest.param(bytes.fromhex(vector["record"]), vector, id=name)
        for name, vector in sorted(loaded.items())
        if vector.get("kek", KEK.hex()) == KEK.hex()
        and vector.get("scope", SCOPE) == SCOPE
        and "accept" not in vector
    ]


@pytest.fixture(scope="session")
def fixtures(session_directory, token_template, pin_file):
    """A server on a token that holds the KEK of the vectors.

    It has opened a local KEK that most of the malformed vectors begin with.
    """
    hsm = import_kek(token_template.copy(session_directory / "vectors"), KEK)
    plugin = beside(
        *(hsm, pin_file),
        apis=apis("software"),
        scope=SCOPE,
        log={"level": "info"},
    )
    start_well(plugin)
    ((record, _),) = (each.values for each in vectors("ok", "local.txt"))
    plugin.v1_decrypt(record)
    yield plugin
    plugin.close()


def flipped(data: bytes):
    """Yield the data with each of its bits flipped, one at a time."""
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def message(ciphertext: bytes, key_id: bytes, more: bytes = b"") -> bytes:
    """Return a DecryptRequest; its key_id may be no text at all."""
    return field(1, ciphertext) + field(2, b"u") + field(3, key_id) + more


@pytest.mark.parametrize(
    ("record", "vector"),
    vectors("ok", "gcm-*.txt", "local.txt", "local-nested-iv*.txt"),
)
def test_33_records_of_every_version(fixtures, record, vector):
    """Both APIs decrypt the records that released versions made."""
    plaintext = bytes.fromhex(vector["plaintext"])
    key_id = Record.decode(record).header.key_id

    assert plaintext == fixtures.decrypt(record, key_id)
    assert plaintext == fixtures.v1_decrypt(record)


def test_33_after_a_restart(make_plugin, hsm):
    """After a restart in another wrapping mode every earlier record decrypts."""
    plugin = make_plugin(hsm)
    deks, sealed = [], []
    for wrapping in (*WRAPPINGS, WRAPPINGS[0]):
        restart(plugin, wrapping)
        opened = [plugin.decrypt(each.ciphertext, each.key_id) for each in sealed]
        assert deks == opened, wrapping
        assert deks == [plugin.v1_decrypt(each.ciphertext) for each in sealed], wrapping
        new = [os.urandom(32) for _ in range(10)]
        sealed += [plugin.encrypt(dek) for dek in new]
        deks += new

    kinds = [Record.decode(each.ciphertext).header.kind for each in sealed]
    one, two = Kind.DEK_BY_TOKEN, Kind.DEK_BY_LOCAL_KEK
    assert [one] * 20 + [two] * 10 + [one] * 10 == kinds


@both_kinds
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda _: "", BAD_REQUEST),
        (lambda _: "k8s-kek", NOT_AUTHENTIC),
        (lambda _: "a" * 26, NOT_AUTHENTIC),
        (lambda key_id: key_id + ".a", NOT_AUTHENTIC),
        (lambda key_id: key_id[:-1], NOT_AUTHENTIC),
        (str.upper, NOT_AUTHENTIC),
        (lambda key_id: key_id + "\0", NOT_AUTHENTIC),
        (lambda key_id: " " + key_id, NOT_AUTHENTIC),
        (lambda key_id: key_id * 40, BAD_REQUEST),
    ],
    ids="empty label other suffix short upper nul space long".split(),  # noqa: SIM905
)
def test_34_altered_key_id(served, change, told):
    """A record is refused with any key_id but its own."""
    sealed = served.encrypt(DEK)
    key_id = change(sealed.key_id)

    assert told == sync_said(lambda: served.decrypt(sealed.ciphertext, key_id))


@both_kinds
def test_34_unknown_key(served, fixtures):
    """A record under the key of another token is refused."""
    sealed = served.encrypt(DEK)

    assert NOT_HELD == sync_said(
        lambda: fixtures.decrypt(sealed.ciphertext, sealed.key_id)
    )


def test_34_no_key_is_tried(spied):
    """An unknown or altered key_id costs no call on the token.

    Only one unknown key_id in 5 seconds makes the server list the keys once more.
    """
    plugin = spied.plugin
    sealed = plugin.encrypt(DEK)
    stranger = shaped(Kind.DEK_BY_TOKEN, STRANGER)
    local = shaped_local(STRANGER)
    told = []

    def seven() -> None:
        told[:] = [
            sync_said(lambda r=record, k=key_id: plugin.decrypt(r, k))
            for record, key_id in (
                (stranger, STRANGER),
                (stranger, sealed.key_id),
                (sealed.ciphertext, STRANGER),
                (sealed.ciphertext, ""),
                (local, STRANGER),
                (local, sealed.key_id),
                (shaped_local(sealed.key_id), STRANGER),
            )
        ]

    assert Counter() == spied.cost(seven, Counter())
    assert [NOT_HELD, NOT_AUTHENTIC, NOT_AUTHENTIC, BAD_REQUEST] == told[:4]
    assert [NOT_HELD, NOT_AUTHENTIC, NOT_AUTHENTIC] == told[4:]


@both_kinds
async def test_35_every_bit_of_the_ciphertext(served):
    """A record with one flipped bit is refused; v1 is tested with every third bit."""
    sealed = served.encrypt(DEK)
    key_id = sealed.key_id
    with unharmed(served):
        async with connected(served, 2) as (one, other):
            told = await all_said(
                one.decrypt(changed, key_id) for changed in flipped(sealed.ciphertext)
            )
            told_v1 = await all_said(
                other.v1_decrypt(changed)
                for changed in [*flipped(sealed.ciphertext)][::3]
            )

    assert {NOT_AUTHENTIC: 8 * len(sealed.ciphertext)} == told
    assert {NOT_AUTHENTIC, NOT_HELD} >= set(told_v1)


async def test_35_a_bit_of_every_byte_when_cold(fixtures):
    """A flipped bit is refused, too, in records whose local KEKs are not in memory."""
    replica = Replica(KEK, SCOPE)
    size = len(replica.by_local(replica.local(), DEK))
    changed = []
    for at in range(size):
        record = bytearray(replica.by_local(replica.local(), DEK))
        record[at] ^= 1 << at % 8
        changed.append(bytes(record))
    with unharmed(fixtures):
        async with connected(fixtures) as (client,):
            told = await all_said(
                client.decrypt(each, replica.key_id) for each in changed
            )

    assert {NOT_AUTHENTIC: size} == told


@both_kinds
async def test_35_every_bit_of_the_key_id(served):
    """A key_id with one flipped bit is refused, even if it is no longer UTF-8."""
    sealed = served.encrypt(DEK)
    with unharmed(served):
        async with connected(served) as (client,):
            told = await all_said(
                client.raw_decrypt(message(sealed.ciphertext, changed))
                for changed in flipped(sealed.key_id.encode())
            )

    assert {NOT_AUTHENTIC, BAD_REQUEST} == set(told)
    assert len(sealed.key_id) == told[BAD_REQUEST]


@both_kinds
async def test_35_every_length(served):
    """A truncated or extended record is refused."""
    sealed = served.encrypt(DEK)
    record, key_id = sealed.ciphertext, sealed.key_id
    changed = [record[:size] for size in range(len(record))]
    changed += [record + bytes([byte]) for byte in range(256)]
    changed += [b"\0" + record, record[1:], record * 2]
    async with connected(served) as (client,):
        told = await all_said(client.decrypt(each, key_id) for each in changed)

    assert {NOT_AUTHENTIC: len(changed) - 1, BAD_REQUEST: 1} == told


def test_36_never_ok_with_what_was_not_authentic(fixtures):
    """Both APIs refuse every record that the specification says must be refused."""
    for case in [*vectors("malformed"), *vectors("not-authentic")]:
        record, _ = case.values
        try:
            key_id = Record.decode(record).header.key_id
        except CiphertextError:
            key_id = fixtures.status().key_id
        v2 = sync_said(partial(fixtures.decrypt, record, key_id))
        v1 = sync_said(partial(fixtures.v1_decrypt, record))
        assert {v1, v2} <= REFUSED, case.id


@both_kinds
async def test_36_parts_of_two_records(served):
    """A record composed of two valid ones is refused."""
    one, other = (served.encrypt(DEK) for _ in range(2))
    mixed = {
        one.ciphertext[:cut] + other.ciphertext[cut:]
        for cut in range(len(one.ciphertext))
    } - {one.ciphertext, other.ciphertext}
    async with connected(served) as (client,):
        told = await all_said(client.decrypt(each, one.key_id) for each in mixed)

    assert {NOT_AUTHENTIC: len(mixed)} == told
