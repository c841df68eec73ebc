"""Local KEKs in memory: what they seal and open, and what becomes of their bytes."""

from __future__ import annotations

import hmac
import os

import pytest

from hsm_kms.errors import CiphertextError
from hsm_kms.wrapping.by_local_kek import MAX_USES, LocalKek, Sealer, make_material
from hsm_kms.wrapping.kek_cache import MAX_OPENED, KekCache
from hsm_kms.wrapping.record import (
    CIPHERTEXT_SENTENCE,
    GCM_TAG_BYTES,
    LOCAL_IV_BYTES,
    LOCAL_KEK_BYTES,
    MAX_PLAINTEXT_BYTES,
    Algorithm,
    Header,
    Kind,
    Record,
)
from hsm_kms.wrapping.wrapper import Path, Sealed, Unsealed
from tests.unit.keys.key_samples import A
from tests.unit.wrapping.test_vectors import VECTORS, field, load

SECRET = bytes(range(100, 132))
SCOPE = "cluster"
DEK = b"d" * 32
ZEROS = bytes(LOCAL_KEK_BYTES)


def vector(name):
    """A vector of a record, and the record."""
    found = load(VECTORS / "record" / f"{name}.txt")
    return found, Record.decode(field(found, "record"))


def open_dek(record, material, scope):
    """Open a record as whoever knows the local KEK would."""
    nested = Record.decode(
        record.header.nested, kinds=frozenset({Kind.LOCAL_KEK_BY_TOKEN})
    )
    return LocalKek(nested, material, scope).open(record.encode())


def make_kek(number=0, material=SECRET, scope=SCOPE):
    """A local KEK, as the token would have wrapped it; no two numbers are alike."""
    header = Header(
        kind=Kind.LOCAL_KEK_BY_TOKEN, algorithm=Algorithm.AES_256_GCM, key_id=A
    )
    wrapped = bytes(LOCAL_KEK_BYTES + GCM_TAG_BYTES)
    nested = Record(header=header, iv=number.to_bytes(12, "big"), ciphertext=wrapped)
    return LocalKek(nested, material, scope)


@pytest.fixture
def frozen(monkeypatch):
    """An operating system whose random source repeats itself."""
    monkeypatch.setattr(os, "urandom", lambda count: b"\x5a" * count)


@pytest.mark.parametrize("name", ["local", "local-nested-cbc-longest"])
def test_opens(name):
    """The DEK comes out that went in."""
    found, record = vector(f"ok/{name}")

    opened = open_dek(record, field(found, "local-kek"), found["scope"])

    assert field(found, "plaintext") == opened


def test_not_authentic():
    """One wrong bit, another scope, another local KEK: one sentence for all."""
    found, good = vector("ok/local")
    _, bad = vector("not-authentic/local-tag")
    local_kek = field(found, "local-kek")
    attempts = [
        (bad, local_kek, found["scope"]),
        (good, local_kek, "another"),
        (good, bytes(32), found["scope"]),
        (good, local_kek[:16], found["scope"]),
        (good, local_kek + b"\0", found["scope"]),
    ]

    for record, key, scope in attempts:
        with pytest.raises(CiphertextError) as caught:
            open_dek(record, key, scope)
        assert CIPHERTEXT_SENTENCE == str(caught.value)


def test_another_local_kek():
    """It opens what carries it, and nothing else."""
    found, record = vector("ok/local")
    other, _ = vector("ok/local-nested-cbc-longest")
    nested = Record.decode(
        record.header.nested, kinds=frozenset({Kind.LOCAL_KEK_BY_TOKEN})
    )
    kek = LocalKek(nested, field(found, "local-kek"), found["scope"])

    with pytest.raises(ValueError, match="another local KEK"):
        kek.open(field(other, "record"))


@pytest.mark.parametrize("size", [1, 32, MAX_PLAINTEXT_BYTES])
@pytest.mark.parametrize("scope", ["", SCOPE])
def test_round_trip(size, scope):
    """What is sealed is a record of kind 2 that opens again, here and anywhere."""
    kek = make_kek(scope=scope)
    plaintext = os.urandom(size)

    sealed = Sealer(kek, 0).seal(plaintext)
    record = Record.decode(sealed)

    assert plaintext == kek.open(sealed)
    assert plaintext == open_dek(record, SECRET, scope)
    assert Kind.DEK_BY_LOCAL_KEK == record.header.kind
    assert (A, kek.nested.encode()) == (record.header.key_id, record.header.nested)
    assert sealed == record.encode()


def test_every_byte_counts():
    """A record that was cut, or of which any bit was changed, does not open."""
    kek = make_kek()
    sealed = Sealer(kek, 0).seal(DEK)
    cut = [sealed[:size] for size in range(len(kek.header), len(sealed))]
    changed = [
        sealed[:at] + bytes([sealed[at] ^ 1 << at % 8]) + sealed[at + 1 :]
        for at in range(len(kek.header), len(sealed))
    ]

    for wrong in [*cut, *changed, sealed + b"\0", sealed + bytes(2 * len(sealed))]:
        with pytest.raises(CiphertextError, match=CIPHERTEXT_SENTENCE):
            kek.open(wrong)


# Nonces


def ivs(sealed):
    return Record.decode(sealed).iv


def test_nonces_of_a_source_that_repeats_itself(frozen):
    """Other plaintexts have other IVs; the same one, the same record: no nonce twice.

    Under the same IV only the same bytes are ever encrypted.
    """
    sealer = Sealer(make_kek(), 0)
    plaintexts = [DEK, b"e" * 32, DEK[:31], DEK + b"\0", b"\0"]

    records = [sealer.seal(plaintext) for plaintext in plaintexts]

    assert len(plaintexts) == len({ivs(record) for record in records})
    assert records == [sealer.seal(plaintext) for plaintext in plaintexts]


def test_nonces_are_distinct():
    """10^5 records of one DEK have as many IVs, of 96 bits."""
    sealer = Sealer(make_kek(), 0)
    at = slice(len(sealer.kek.header), len(sealer.kek.header) + 1 + LOCAL_IV_BYTES)

    found = {sealer.seal(DEK)[at] for _ in range(100_000)}

    assert 100_000 == len(found) == sealer.uses
    assert {bytes([12])} == {each[:1] for each in found}


def test_each_has_its_own_nonce_key(monkeypatch):
    """The same local KEK in two memories, and a source that fails in both."""
    sealers = [Sealer(make_kek(), 0) for _ in range(2)]
    monkeypatch.setattr(os, "urandom", bytes)

    assert 2 == len({ivs(each.seal(DEK)) for each in sealers})


def test_hard_limit():
    """After 2^31 uses it seals nothing more, and makes no further nonce."""
    sealer = Sealer(make_kek(), 0)
    sealer.uses = MAX_USES - 1
    sealer.seal(DEK)

    for _ in range(2):
        with pytest.raises(OverflowError):
            sealer.seal(DEK)
    assert 2**31 == MAX_USES == sealer.uses


# Birth


def test_material_is_hkdf_of_both(frozen):
    """HKDF-SHA-256 by RFC 5869, sections 2.2 and 2.3, computed by hand."""
    token_random = bytes(range(32))
    both = b"\x5a" * 32 + token_random
    extracted = hmac.digest(bytes(32), both, "sha256")
    expanded = hmac.digest(extracted, b"hsm-kms/local-kek/1\x01", "sha256")

    assert expanded == make_material(token_random)


def test_either_source_is_enough(monkeypatch):
    """Where one of them repeats itself, the other still makes another key."""
    by_system = {bytes(make_material(bytes(32))) for _ in range(10)}
    monkeypatch.setattr(os, "urandom", bytes)
    by_token = {bytes(make_material(bytes([n]) * 32)) for n in range(10)}

    assert (10, 10) == (len(by_system), len(by_token))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_token_gave_another_number_of_bytes(size):
    """Nothing is made of too few."""
    with pytest.raises(ValueError, match="another number"):
        make_material(bytes(size))


# The bytes in memory


def test_wiped_when_nobody_holds_it():
    """Its buffer is all zeros once the last who held it lets it go."""
    sealer = Sealer(make_kek(), 0)
    opened = KekCache()
    opened.add(sealer.kek)
    buffer = sealer.kek._material
    sealed = sealer.seal(DEK)
    sealer.kek.open(sealed)
    with pytest.raises(CiphertextError):
        sealer.kek.open(sealed[:-1])

    opened.keep(lambda _: False)
    held = bytes(buffer)
    del sealer

    assert SECRET == held
    assert ZEROS == buffer


def test_wiped_when_pushed_out():
    """Also when it gives way to another one."""
    opened = KekCache(most=1)
    opened.add(make_kek(1))
    (first,) = opened._keks.values()
    buffer = first._material
    del first
    opened.add(make_kek(2))

    assert ZEROS == buffer


def test_what_is_given_is_copied():
    """The caller wipes his own buffer, and the local KEK still works."""
    material = bytearray(SECRET)
    kek = make_kek(material=material)
    sealed = Sealer(kek, 0).seal(DEK)
    material[:] = bytes(32)

    assert DEK == kek.open(sealed)


def test_nothing_in_a_repr():
    """No key byte and no DEK in what a log or a debugger would show."""
    kek = make_kek()
    sealer = Sealer(kek, 0)
    opened = KekCache()
    opened.add(kek)
    secrets = [SECRET, DEK]
    parts = [
        kek,
        sealer,
        opened,
        opened._keks,
        Sealed(sealer.seal(DEK), A, Path.LOCAL),
        Unsealed(DEK, Path.LOCAL),
    ]
    with pytest.raises(CiphertextError) as caught:
        kek.open(sealer.seal(DEK)[:-1])

    shown = " ".join(map(repr, [*parts, caught.value, caught.value.__context__]))
    for secret in secrets:
        for form in (repr(secret)[2:-1], secret.hex(), repr(list(secret))[1:-1]):
            assert form not in shown


# The store


def test_store_is_bounded():
    """It holds so many, and the one not used for longest gives way."""
    opened = KekCache(most=3)
    keks = [make_kek(number) for number in range(5)]

    def there():
        return {n for n, kek in enumerate(keks) if kek.header in opened._keks}

    for kek in keks[:3]:
        opened.add(kek)
    found = opened.find(Sealer(keks[0], 0).seal(DEK), SCOPE)
    opened.add(keks[3])  # 1 was not used for longest
    after_find = there()
    opened.add(keks[2])  # being put in again counts as use
    opened.add(keks[4])

    assert keks[0] is found
    assert {0, 2, 3} == after_find
    assert {2, 3, 4} == there()


def test_store_by_default():
    """16,384 of them, which is what the specification says."""
    opened = KekCache()
    for number in range(MAX_OPENED + 5):
        opened.add(make_kek(number))

    assert 16_384 == len(opened)


def test_store_tells_scopes_apart():
    """Opened under one scope, it is not found under another."""
    opened = KekCache()
    kek = make_kek()
    opened.add(kek)
    sealed = Sealer(kek, 0).seal(DEK)

    assert opened.find(sealed, "another") is None
    assert opened.find(sealed, "") is None
    assert kek is opened.find(sealed, SCOPE)


def test_store_takes_anything():
    """Bytes from anywhere are only looked up: nothing is raised, nothing is moved."""
    opened = KekCache(most=1)
    kek = make_kek()
    opened.add(kek)
    sealed = Sealer(kek, 0).seal(DEK)
    header = len(kek.header)
    anything = [
        *(sealed[:size] for size in range(header)),
        *(sealed[:at] + b"\xff" + sealed[at + 1 :] for at in range(header)),
        bytes([1, 2, 1, 255]),
        bytes([1, 2, 1, 0, 255, 255]),
    ]

    assert [None] * len(anything) == [opened.find(each, SCOPE) for each in anything]
    assert kek is opened.find(sealed, SCOPE)


def test_store_drops_what_is_not_wanted():
    """Those that are kept stay as they are."""
    opened = KekCache()
    keks = [make_kek(number) for number in range(3)]
    for kek in keks:
        opened.add(kek)
    opened.keep(lambda kek: kek is not keks[1])

    assert [True, False, True] == [
        opened.find(kek.header, SCOPE) is kek for kek in keks
    ]
