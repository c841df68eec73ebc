"""IVs made in a worker, where the random source of the machine repeats itself."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import pytest

from hsm_kms.ipc.messages import Encrypted, GenerateKey, KeyPage
from hsm_kms.ipc.values import KeyRef, Mechanism
from tests.harness.entropy.driver import frozen_entropy
from tests.harness.one_worker import (
    Named,
    ask,
    keys,
    unwrapping,
    wrapping,
)

PAIR = KeyRef("pair", b"pair")
# The last two are the same bytes, divided in another place.
SEALED = [
    *((b"aad", b"%032d" % number) for number in range(20)),
    *((b"aad %d" % number, b"d" * 32) for number in range(20)),
    *((b"aad-", b"dek"), (b"aad", b"-dek")),
]
MADE_HERE = [Mechanism.GCM_CALLER, Mechanism.CBC_HMAC]


@pytest.fixture
async def pair(make):
    """An AES key and the HMAC key beside it."""
    async with make(read_write=True) as worker:
        for partner in (False, True):
            made = await ask(worker, GenerateKey(ref=PAIR, partner=partner))
            assert isinstance(made, KeyPage)
    return PAIR


async def ivs(worker, ref, mechanism):
    """Return the IVs of all of `SEALED`, each of which decrypts again."""
    (seen,) = await keys(worker, ref.label)
    used = seen.partner if mechanism is Mechanism.CBC_HMAC else seen
    key = Named(ref, used.fingerprint)
    found = []
    for aad, plaintext in SEALED:
        request = msgspec.structs.replace(
            wrapping(key, plaintext, aad), mechanism=mechanism
        )
        sealed = await ask(worker, request)
        assert isinstance(sealed, Encrypted), sealed
        opened = msgspec.structs.replace(
            unwrapping(key, sealed, aad), cipher=mechanism.cipher
        )
        assert plaintext == (await ask(worker, opened)).plaintext
        found.append(sealed.iv)
    return found


@pytest.mark.parametrize("mechanism", MADE_HERE)
async def test_repeated_randomness(make, pair, mechanism):
    """Two workers with the same random bytes use no IV for two plaintexts or AADs."""
    used = defaultdict(set)
    both = []
    for _ in range(2):
        async with make(frozen_entropy()) as worker:
            both.append(await ivs(worker, pair, mechanism))
            for iv, what in zip(both[-1], SEALED, strict=True):
                used[iv].add(what)

    assert {1} == {len(each) for each in used.values()}
    assert len(SEALED) == len(used)
    assert both[0] == both[1]  # nothing was random: the test shows what it says


@pytest.mark.parametrize("mechanism", MADE_HERE)
async def test_new_each_time(make, pair, mechanism):
    """With a good random source, one plaintext gets another IV each time."""
    async with make() as worker:
        found = await ivs(worker, pair, mechanism)
        found += await ivs(worker, pair, mechanism)

    assert 2 * len(SEALED) == len(set(found))
