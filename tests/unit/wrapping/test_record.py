"""Encoding and decoding records: the one encoding, and every refusal."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.errors import CiphertextError
from hsm_kms.wrapping.record import (
    AAD_DOMAIN,
    FROM_OUTSIDE,
    MAX_KEY_ID_BYTES,
    MAX_NESTED_BYTES,
    MAX_RECORD_BYTES,
    Algorithm,
    Header,
    Kind,
    Record,
)

GCM, CBC = Algorithm.AES_256_GCM, Algorithm.AES_256_CBC_HMAC_SHA256
KEY_ID = "abcdefghijklmnopqrstuvwxya"
ANY_KIND = frozenset(Kind)
TOKEN_KINDS = sorted(ANY_KIND - {Kind.DEK_BY_LOCAL_KEK})


def fingerprint(data):
    return base64.b32encode(data).decode().lower().rstrip("=")


suffixes = st.from_regex(r"(\.[a-z0-9]{1,16})?", fullmatch=True)
key_ids = st.builds(
    "{}{}".format,
    st.binary(min_size=16, max_size=16).map(fingerprint),
    suffixes,
)
scopes = st.text(max_size=64).filter(lambda text: len(text.encode()) <= 64)


def lengths(kind, algorithm):
    local = kind is Kind.LOCAL_KEK_BY_TOKEN
    if algorithm is GCM:
        return st.just(32 + 16) if local else st.integers(17, 1040)
    blocks = st.just(3) if local else st.integers(1, 65)
    return blocks.map(lambda count: 16 * count + 32)


@st.composite
def records_by_token(draw, kinds=TOKEN_KINDS, key_id=None):
    kind = draw(st.sampled_from(kinds))
    algorithm = draw(st.sampled_from(list(Algorithm)))
    size = draw(lengths(kind, algorithm))
    iv_size = draw(st.integers(12, 16)) if algorithm is GCM else 16
    return Record(
        header=Header(
            kind=kind,
            algorithm=algorithm,
            key_id=draw(key_ids) if key_id is None else key_id,
        ),
        iv=draw(st.binary(min_size=iv_size, max_size=iv_size)),
        ciphertext=draw(st.binary(min_size=size, max_size=size)),
    )


@st.composite
def records_by_local_kek(draw):
    key_id = draw(key_ids)
    nested = draw(records_by_token([Kind.LOCAL_KEK_BY_TOKEN], key_id))
    return Record(
        header=Header(
            kind=Kind.DEK_BY_LOCAL_KEK,
            algorithm=GCM,
            key_id=key_id,
            nested=nested.encode(),
        ),
        iv=draw(st.binary(min_size=12, max_size=12)),
        ciphertext=draw(st.binary(min_size=17, max_size=1040)),
    )


records = records_by_token() | records_by_local_kek()


def make(kind=Kind.DEK_BY_TOKEN, algorithm=GCM, key_id=KEY_ID, nested=b""):
    """Return a record with the usual lengths of its kind."""
    header = Header(kind=kind, algorithm=algorithm, key_id=key_id, nested=nested)
    iv, size = (bytes(12), 48) if algorithm is GCM else (bytes(16), 80)
    return Record(header=header, iv=iv, ciphertext=bytes(range(size)))


def make_local():
    nested = make(Kind.LOCAL_KEK_BY_TOKEN).encode()
    return make(Kind.DEK_BY_LOCAL_KEK, nested=nested)


EXAMPLES = [
    pytest.param(make(), id="gcm"),
    pytest.param(make(algorithm=CBC), id="cbc"),
    pytest.param(make_local(), id="local"),
]


def bound(record, scope=""):
    """Return the parts of a record that authentication covers."""
    return record.header.aad(scope), record.iv, record.ciphertext


@given(records)
def test_round_trip(record):
    """An encoded record is decoded to an equal one."""
    data = record.encode()

    assert record == Record.decode(data, kinds=ANY_KIND)
    assert len(data) <= MAX_RECORD_BYTES


@given(st.binary(max_size=2 * MAX_RECORD_BYTES))
def test_any_input(data):
    """Any input is either the one encoding of a record, or refused."""
    try:
        record = Record.decode(data, kinds=ANY_KIND)
    except CiphertextError:
        return
    assert data == record.encode()


@given(records, st.data())
def test_any_change(record, data):
    """A record with some bytes replaced is the one encoding of a record, or refused."""
    encoded = record.encode()
    start = data.draw(st.integers(0, len(encoded)))
    end = data.draw(st.integers(start, min(start + 4, len(encoded))))
    changed = encoded[:start] + data.draw(st.binary(max_size=4)) + encoded[end:]
    try:
        again = Record.decode(changed, kinds=ANY_KIND)
    except CiphertextError:
        return
    assert changed == again.encode()
    assert (changed == encoded) == (bound(again) == bound(record))


@pytest.mark.parametrize("record", EXAMPLES)
def test_every_bit(record):
    """Flipping any bit is refused or changes what authentication covers."""
    data = record.encode()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            try:
                again = Record.decode(bytes(changed), kinds=ANY_KIND)
            except CiphertextError:
                continue
            assert bound(again) != bound(record)


@pytest.mark.parametrize("record", EXAMPLES)
def test_every_truncation(record):
    """A truncated record is refused, or has only a shorter ciphertext."""
    data = record.encode()
    for size in range(len(data)):
        try:
            again = Record.decode(data[:size])
        except CiphertextError:
            continue
        cut = record.ciphertext[: size - len(data)]
        assert dataclasses.replace(record, ciphertext=cut) == again


def test_truncation_of_cbc():
    """A record of CBC and HMAC from which no whole blocks were cut is refused."""
    data = make(algorithm=CBC).encode()
    for size in set(range(len(data))) - {len(data) - 16, len(data) - 32}:
        with pytest.raises(CiphertextError):
            Record.decode(data[:size])


@pytest.mark.parametrize("record", EXAMPLES)
def test_trailing_byte(record):
    """A byte after the end is refused, or is a part of the ciphertext."""
    data = record.encode() + b"\x00"
    if record.header.algorithm is CBC:
        with pytest.raises(CiphertextError):
            Record.decode(data)
    else:
        assert record.ciphertext + b"\x00" == Record.decode(data).ciphertext


def test_trailing_byte_in_nested():
    """A nested record with a byte more or less is refused."""
    nested = make(Kind.LOCAL_KEK_BY_TOKEN).encode()
    for wrong in (nested + b"\x00", nested[:-1]):
        with pytest.raises(ValueError, match="wrong length"):
            make(Kind.DEK_BY_LOCAL_KEK, nested=wrong)


@pytest.mark.parametrize("kind", Kind)
def test_kinds_from_outside(kind):
    """A local KEK and a canary are refused unless the caller accepts the kind."""
    record = make_local() if kind is Kind.DEK_BY_LOCAL_KEK else make(kind)
    data = record.encode()

    assert record == Record.decode(data, kinds=frozenset({kind}))
    if kind in FROM_OUTSIDE:
        assert record == Record.decode(data)
    else:
        with pytest.raises(CiphertextError):
            Record.decode(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x02", make(Kind.CANARY).encode(), make().encode()[:40], bytes(1 << 22)],
    ids=["empty", "version", "kind", "short", "4-MiB"],
)
def test_one_sentence(data):
    """Every cause gives the same message, and no exception is chained to the error."""
    with pytest.raises(CiphertextError) as caught:
        Record.decode(data)

    assert "the ciphertext is malformed or not authentic" == str(caught.value)
    assert caught.value.__cause__ is None


@given(records, records, scopes, scopes)
def test_aad_is_injective(first, second, scope, other):
    """Two different headers or scopes never have the same associated data."""
    same = (first.header, scope) == (second.header, other)

    assert same == (first.header.aad(scope) == second.header.aad(other))


def test_aad():
    """The associated data is the domain, the scope and the header, in this order."""
    header = make().header
    assert AAD_DOMAIN == b"hsm-kms/record/1"
    expected = b"hsm-kms/record/1\x02eu\x01\x01\x01\x1a" + KEY_ID.encode()

    assert expected == header.aad("eu")


@pytest.mark.parametrize("scope", ["x" * 65, "ü" * 33, "\ud800"])
def test_bad_scope(scope):
    """A scope of more than 64 bytes, or one that is not Unicode, is refused."""
    with pytest.raises(ValueError, match=r"scope|surrogates"):
        make().header.aad(scope)


@pytest.mark.parametrize(
    "key_id",
    ["", KEY_ID[:-1], KEY_ID.upper(), KEY_ID + ".", KEY_ID + "\n", KEY_ID[:-1] + "b"],
)
def test_bad_key_id(key_id):
    """A header with a key_id outside its grammar cannot be built."""
    with pytest.raises(ValueError, match="key_id breaks its grammar"):
        Header(kind=Kind.DEK_BY_TOKEN, algorithm=GCM, key_id=key_id)


def test_limits():
    """The longest records are as long as docs/spec.md says."""
    key_id = KEY_ID + "." + "z" * 16
    nested = make(Kind.LOCAL_KEK_BY_TOKEN, CBC, key_id)
    record = make(Kind.DEK_BY_LOCAL_KEK, key_id=key_id, nested=nested.encode())
    longest = dataclasses.replace(record, ciphertext=bytes(1040))

    assert 43 == MAX_KEY_ID_BYTES == len(key_id)
    assert 144 == MAX_NESTED_BYTES == len(nested.encode())
    assert 1246 == MAX_RECORD_BYTES == len(longest.encode())
    assert longest == Record.decode(longest.encode())
