"""Requests to a session in a real worker on a real token."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.ipc import framing
from hsm_kms.ipc.messages import (
    Configure,
    Decrypted,
    Destroy,
    Done,
    Encrypted,
    Failure,
    FindKeys,
    KeyRef,
    OpenSession,
)
from hsm_kms.token.process import Worker
from tests.harness.one_worker import (
    AAD,
    Named,
    ask,
    canary,
    configure,
    imported,
    only_key,
    unwrapping,
    wrapping,
)
from tests.harness.spy import Spy
from tests.harness.token_keys import LABEL, MATERIAL, create

UNKNOWN = Named(KeyRef(LABEL, b"no such key"), "a" * 26)


async def prove(worker, key):
    assert isinstance(await ask(worker, canary(key)), Encrypted)


def flip(data, bit=0):
    return bytes([data[0] ^ 1 << bit]) + data[1:]


async def test_round_trip(worker):
    """A plaintext is wrapped with a new IV each time, and unwrapped again."""
    key = await only_key(worker)
    sealed = [await ask(worker, wrapping(key, b"dek")) for _ in range(20)]

    assert 20 == len({one.iv for one in sealed})
    assert {12} == {len(one.iv) for one in sealed}
    for one in sealed:
        assert Decrypted(plaintext=b"dek") == await ask(worker, unwrapping(key, one))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1024])
async def test_same_as_software(worker, hsm, size):
    """Token and software decrypt each other's AES-GCM."""
    create(hsm)
    software, plaintext = AESGCM(MATERIAL), bytes(size)
    sealed = await ask(worker, wrapping(imported(), plaintext))
    assert plaintext == software.decrypt(sealed.iv, sealed.ciphertext, AAD)
    theirs = Encrypted(
        iv=b"i" * 12, ciphertext=software.encrypt(b"i" * 12, plaintext, AAD)
    )

    assert plaintext == (await ask(worker, unwrapping(imported(), theirs))).plaintext


@pytest.mark.parametrize("what", ["tag", "ciphertext", "iv", "aad", "cut", "longer"])
async def test_not_authentic(worker, what):
    """After a bad ciphertext the canary still decrypts, and the session is kept."""
    key = await only_key(worker)
    await prove(worker, key)
    sealed = await ask(worker, wrapping(key, b"d" * 32))
    iv, data, aad = sealed.iv, sealed.ciphertext, AAD
    bad = {
        "tag": (iv, data[:-1] + flip(data[-1:]), aad),
        "ciphertext": (iv, flip(data), aad),
        "iv": (flip(iv), data, aad),
        "aad": (iv, data, flip(aad)),
        "cut": (iv, data[:-1], aad),
        "longer": (iv, data + b"\0", aad),
    }[what]
    request = unwrapping(key, Encrypted(iv=bad[0], ciphertext=bad[1]), bad[2])
    for _ in range(3):
        reply = await ask(worker, request)
        assert isinstance(reply, Failure)
        assert reply.cause in {"not-authentic", "request"}
        assert "C_Decrypt" == reply.function
        assert reply.rv in {0x05, 0x40}

    assert b"d" * 32 == (await ask(worker, unwrapping(key, sealed))).plaintext


async def test_not_authentic_without_canary(worker):
    """Without a canary nothing tells whether ciphertext or token is at fault."""
    key = await only_key(worker)
    sealed = await ask(worker, wrapping(key, b"d" * 32))
    bad = Encrypted(iv=sealed.iv, ciphertext=flip(sealed.ciphertext))
    reply = await ask(worker, unwrapping(key, bad))

    assert reply.cause in {"unsettled", "request"}


@pytest.mark.parametrize("length", [0, 1, 15, 16])
async def test_too_short(worker, length):
    """A ciphertext no longer than its tag is refused."""
    key = await only_key(worker)
    await prove(worker, key)
    short = Encrypted(iv=b"i" * 12, ciphertext=b"c" * length)
    reply = await ask(worker, unwrapping(key, short))

    assert isinstance(reply, Failure)
    assert Done() == await ask(worker, OpenSession())
    assert isinstance(await ask(worker, wrapping(key, b"dek")), Encrypted)


async def test_no_such_key(worker):
    """A missing key is reported by its names."""
    await only_key(worker)
    reply = await ask(worker, wrapping(UNKNOWN, b"dek"))

    assert "no-key" == reply.cause
    assert UNKNOWN.ref.cka_id.hex() in reply.detail


async def test_two_calls_each(make, directory):
    """Once its key is found, a wrap costs two C calls, and an unwrap two."""
    log = directory / "spy.log"
    spy = Spy(log)
    async with make(spy.env, module=spy.module) as worker:
        key = await only_key(worker)
        await ask(worker, wrapping(key, b"dek"))
        before = len(log.read_text())
        sealed = await ask(worker, wrapping(key, b"dek"))
        await ask(worker, unwrapping(key, sealed))
        text = log.read_text()[before:]
    names = [line.partition(": ")[2] for line in text.splitlines() if ": C_" in line]

    assert ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"] == names


async def test_not_a_session_s_request(worker):
    """A second Configure is refused and changes nothing."""
    reply = await ask(worker, Configure(module="/nonexistent.so"))

    assert "internal" == reply.cause
    assert await only_key(worker)


async def test_not_logged_in(hsm):
    """Without a login a key is not reported as missing, but the login is."""
    worker = await Worker.spawn(1, hsm.env)
    try:
        await worker.configure(configure())
        for request in (FindKeys(label=LABEL), wrapping(UNKNOWN, b"dek")):
            reply = await worker.sessions[0].exchange(request)
            assert "login" == reply.cause
    finally:
        await worker.leave()


async def test_answer_too_long(worker):
    """A reply that is too long for a message becomes a failure."""
    empty = framing.pack(1, Destroy(ref=KeyRef("", b"")))
    label = "x" * (framing.MAX_MESSAGE_BYTES - len(empty) - 4)  # longer length field
    request = Destroy(ref=KeyRef(label, b""))
    reply = await ask(worker, request)

    assert ("internal", "the answer is too long") == (reply.cause, reply.detail)
    assert await only_key(worker)
