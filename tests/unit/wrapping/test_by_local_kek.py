"""Local KEKs in memory: records made and decrypted with them, and their bytes."""

from __future__ import annotations

import hmac
import os

import pytest

from hsm_kms.errors import OTHER_SCOPE, CiphertextError
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
    """Return a vector of a record, and the record."""
    found = load(VECTORS / "record" / f"{name}.txt")
    return found, Record.decode(field(found, "record"))


def open_dek(record, material, scope):
    """Decrypt a record as anyone who knows the local KEK can."""
    nested = Record.decode(
        record.header.nested, kinds=frozenset({Kind.LOCAL_KEK_BY_TOKEN})
    )
    return LocalKek(nested, material, scope).open(record.encode())


def make_kek(number=0, material=SECRET, scope=SCOPE):
    """Return a local KEK as if the token had wrapped it, another for each number."""
    header = Header(
        kind=Kind.LOCAL_KEK_BY_TOKEN, algorithm=Algorithm.AES_256_GCM, key_id=A
    )
    wrapped = bytes(LOCAL_KEK_BYTES + GCM_TAG_BYTES)
    nested = Record(header=header, iv=number.to_bytes(12, "big"), ciphertext=wrapped)
    return LocalKek(nested, material, scope)


@pytest.fixture
def frozen(monkeypatch):
    """Let the random source of the operating system repeat itself."""
    monkeypatch.setattr(os, "urandom", lambda count: b"\x5a" * count)


@pytest.mark.parametrize("name", ["local", "local-nested-cbc-longest"])
def test_opens(name):
    """A record of the test vectors is decrypted to its DEK."""
    found, record = vector(f"ok/{name}")

    opened = open_dek(record, field(found, "local-kek"), found["scope"])

    assert field(found, "plaintext") == opened


def test_not_authentic():
    """A wrong bit, another scope and another local KEK give the same message."""
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
        assert (OTHER_SCOPE if len(key) == 32 else None) == caught.value.hint


def test_another_local_kek():
    """A local KEK refuses to decrypt a record that carries another local KEK."""
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
    """A sealer makes a record of kind 2, which any holder of the local KEK decrypts."""
    kek = make_kek(scope=scope)
    plaintext = os.urandom(size)

    sealed = Sealer(kek, 0).seal(plaintext)
    record = Record.decode(sealed)

    assert plaintext == kek.open(sealed)
    assert plaintext == open_dek(record, SECRET, scope)
    assert Kind.DEK_BY_LOCAL_KEK == record.header.kind
    assert (A, kek.nested.encode()) == (record.header.key_id, record.header.nested)
    assert A == kek.key_id
    assert sealed == record.encode()


def test_every_byte_counts():
    """A record that was cut, or of which one bit was changed, is not decrypted."""
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


@pytest.mark.parametrize("size", [0, MAX_PLAINTEXT_BYTES + 1])
def test_authentic_and_no_dek(size):
    """A record that holds nothing or too much is refused although it is authentic."""
    kek = make_kek()
    iv = bytes(LOCAL_IV_BYTES)
    sealed = kek.cipher.encrypt(iv, bytes(size), kek.aad)

    with pytest.raises(CiphertextError, match=CIPHERTEXT_SENTENCE):
        kek.open(kek.header + bytes([LOCAL_IV_BYTES]) + iv + sealed)


# Nonces


def ivs(sealed):
    return Record.decode(sealed).iv


def test_nonces_of_a_source_that_repeats_itself(frozen):
    """If the random source repeats itself, only equal plaintexts have equal IVs."""
    sealer = Sealer(make_kek(), 0)
    plaintexts = [DEK, b"e" * 32, DEK[:31], DEK + b"\0", b"\0"]

    records = [sealer.seal(plaintext) for plaintext in plaintexts]

    assert len(plaintexts) == len({ivs(record) for record in records})
    assert records == [sealer.seal(plaintext) for plaintext in plaintexts]


def test_nonces_are_distinct():
    """In 100,000 records of one DEK no IV of 96 bits comes twice."""
    sealer = Sealer(make_kek(), 0)
    at = slice(len(sealer.kek.header), len(sealer.kek.header) + 1 + LOCAL_IV_BYTES)

    found = {sealer.seal(DEK)[at] for _ in range(100_000)}

    assert 100_000 == len(found) == sealer.uses
    assert {bytes([12])} == {each[:1] for each in found}


def test_each_has_its_own_nonce_key(monkeypatch):
    """Two sealers of one local KEK make different IVs, even without randomness."""
    sealers = [Sealer(make_kek(), 0) for _ in range(2)]
    monkeypatch.setattr(os, "urandom", bytes)

    assert 2 == len({ivs(each.seal(DEK)) for each in sealers})


def test_hard_limit():
    """After 2^31 uses a local KEK wraps no more, and makes no further IV."""
    sealer = Sealer(make_kek(), 0)
    sealer.uses = MAX_USES - 1
    sealer.seal(DEK)

    for _ in range(2):
        with pytest.raises(OverflowError):
            sealer.seal(DEK)
    assert 2**31 == MAX_USES == sealer.uses


def test_age_and_uses():
    """A sealer says when its local KEK was created, and how many IVs it made."""
    sealer = Sealer(make_kek(), created=7)
    sealer.seal(DEK)

    assert (7, 1) == (sealer.created, sealer.uses)


# Creation


def test_material_is_hkdf_of_both(frozen):
    """A local KEK is HKDF-SHA-256 (RFC 5869, sections 2.2 and 2.3) of both sources."""
    token_random = bytes(range(32))
    both = b"\x5a" * 32 + token_random
    extracted = hmac.digest(bytes(32), both, "sha256")
    expanded = hmac.digest(extracted, b"hsm-kms/local-kek/1\x01", "sha256")

    assert expanded == make_material(token_random)


def test_either_source_is_enough(monkeypatch):
    """If one random source repeats itself, the other still makes another local KEK."""
    by_system = {bytes(make_material(bytes(32))) for _ in range(10)}
    monkeypatch.setattr(os, "urandom", bytes)
    by_token = {bytes(make_material(bytes([n]) * 32)) for n in range(10)}

    assert (10, 10) == (len(by_system), len(by_token))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_token_gave_another_number_of_bytes(size):
    """A local KEK is not made of another number of random bytes than 32."""
    with pytest.raises(ValueError, match="another number"):
        make_material(bytes(size))


# The bytes in memory


def test_wiped_when_nobody_holds_it():
    """The buffer of a local KEK is all zeros once nothing refers to it."""
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
    """A local KEK that is evicted from the cache is wiped."""
    opened = KekCache(most=1)
    first = make_kek(1)
    opened.add(first)
    buffer = first._material
    del first
    opened.add(make_kek(2))

    assert ZEROS == buffer


def test_what_is_given_is_copied():
    """A local KEK still works after its caller has wiped the material."""
    material = bytearray(SECRET)
    kek = make_kek(material=material)
    sealed = Sealer(kek, 0).seal(DEK)
    material[:] = bytes(32)

    assert DEK == kek.open(sealed)


def test_nothing_in_a_repr():
    """No `repr` shows a byte of a key or of a DEK."""
    kek = make_kek()
    sealer = Sealer(kek, 0)
    opened = KekCache()
    opened.add(kek)
    secrets = [SECRET, DEK]
    parts = [
        kek,
        sealer,
        opened,
        Sealed(sealer.seal(DEK), A, Path.LOCAL),
        Unsealed(DEK, A, Path.LOCAL),
    ]
    with pytest.raises(CiphertextError) as caught:
        kek.open(sealer.seal(DEK)[:-1])

    shown = " ".join(map(repr, [*parts, caught.value, caught.value.__context__]))
    for secret in secrets:
        for form in (repr(secret)[2:-1], secret.hex(), repr(list(secret))[1:-1]):
            assert form not in shown


# The cache


def test_store_is_bounded():
    """A full cache evicts the local KEK that was least recently used."""
    opened = KekCache(most=3)
    keks = [make_kek(number) for number in range(5)]

    def there():
        return {n for n, kek in enumerate(keks) if kek.header in opened._keks}

    for kek in keks[:3]:
        opened.add(kek)
    found = opened.find(Sealer(keks[0], 0).seal(DEK), SCOPE)
    opened.add(keks[3])  # 1 is the least recently used
    after_find = there()
    opened.add(keks[2])  # adding it again counts as use
    opened.add(keks[4])

    assert keks[0] is found
    assert {0, 2, 3} == after_find
    assert {2, 3, 4} == there()


def test_store_by_default():
    """By default the cache holds 16,384 local KEKs."""
    opened = KekCache()
    for number in range(MAX_OPENED + 5):
        opened.add(make_kek(number))

    assert 16_384 == len(opened)


def test_store_tells_scopes_apart():
    """A local KEK unwrapped under one scope is not found under another."""
    opened = KekCache()
    kek = make_kek()
    opened.add(kek)
    sealed = Sealer(kek, 0).seal(DEK)

    assert opened.find(sealed, "another") is None
    assert opened.find(sealed, "") is None
    assert kek is opened.find(sealed, SCOPE)


def test_store_takes_anything():
    """A search for any bytes raises nothing and evicts nothing."""
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
    """`keep` drops the local KEKs that are not wanted, and no others."""
    opened = KekCache()
    keks = [make_kek(number) for number in range(3)]
    for kek in keks:
        opened.add(kek)
    opened.keep(lambda kek: kek is not keks[1])

    assert [True, False, True] == [
        opened.find(kek.header, SCOPE) is kek for kek in keks
    ]
