"""What a session answers, in a real worker on a real token."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as SoftCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_kms.token.process import Worker
from hsm_kms.worker import messages
from hsm_kms.worker.messages import (
    Block,
    Configure,
    Decrypted,
    Done,
    Encrypted,
    Failure,
    FindKeys,
    Fingerprint,
    GenerateKey,
    KeyRef,
    Keys,
    Mechanism,
    OpenSession,
    Prove,
)
from tests.served import AAD, LABEL, configure, gate, unwrapping, wrapping
from tests.support import PIN, TOKEN_LABEL, softhsm_module

SPY = "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so"
MATERIAL = bytes(range(32))
IMPORTED = KeyRef("imported", b"\x07")
BLOCK = b"hsm-kms fp block"
UNKNOWN = KeyRef(LABEL, b"no such key")


@pytest.fixture
def make(hsm, pin_file, directory):
    """Start workers on a token with one KEK, logged in, with one session."""

    @contextlib.asynccontextmanager
    async def make(env=None, **changes):
        worker = await Worker.spawn(1, hsm.env | (env or {}))
        try:
            await worker.configure(configure(**changes))
            await gate(pin_file, directory).login(worker)
            await worker.open_sessions(worker.sessions)
            yield worker
        finally:
            await worker.leave()

    return make


@pytest.fixture
async def worker(make):
    """One of them."""
    async with make() as made:
        yield made


async def ask(worker, request):
    """One exchange on its session."""
    return await worker.sessions[0].exchange(request)


async def keys(worker, label=LABEL):
    reply = await ask(worker, FindKeys(label=label))
    assert isinstance(reply, Keys), reply
    return reply.keys


async def only_ref(worker, label=LABEL):
    (key,) = await keys(worker, label)
    return key.ref


async def prove(worker, ref):
    reply = await ask(
        worker, Prove(ref=ref, mechanism=Mechanism.GCM_CALLER, aad=b"canary")
    )
    assert Done() == reply


def destroy(hsm, ref):
    """Destroy a key from another process."""
    hsm.pkcs11_tool(
        *("--delete-object", "--type", "secrkey"),
        *("--label", ref.label, "--id", ref.cka_id.hex()),
    )


def flip(data, bit=0):
    return bytes([data[0] ^ 1 << bit]) + data[1:]


async def test_round_trip(worker):
    """Wrapped here, unwrapped here, with an IV of its own each time."""
    ref = await only_ref(worker)
    sealed = [await ask(worker, wrapping(ref, b"dek")) for _ in range(20)]

    assert 20 == len({one.iv for one in sealed})
    assert {12} == {len(one.iv) for one in sealed}
    for one in sealed:
        assert Decrypted(plaintext=b"dek") == await ask(worker, unwrapping(ref, one))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1024])
async def test_same_as_software(worker, hsm, size):
    """The token's AES-GCM is AES-GCM: software opens what it made, and it theirs."""
    hsm.import_aes(MATERIAL, label=IMPORTED.label, cka_id=IMPORTED.cka_id)
    software, plaintext = AESGCM(MATERIAL), bytes(size)
    sealed = await ask(worker, wrapping(IMPORTED, plaintext))
    assert plaintext == software.decrypt(sealed.iv, sealed.ciphertext, AAD)
    theirs = Encrypted(
        iv=b"i" * 12, ciphertext=software.encrypt(b"i" * 12, plaintext, AAD)
    )

    assert plaintext == (await ask(worker, unwrapping(IMPORTED, theirs))).plaintext


@pytest.mark.parametrize("what", ["tag", "ciphertext", "iv", "aad", "cut", "longer"])
async def test_not_authentic(worker, what):
    """A bad ciphertext is told from a bad session, and the session is kept."""
    ref = await only_ref(worker)
    await prove(worker, ref)
    sealed = await ask(worker, wrapping(ref, b"d" * 32))
    iv, data, aad = sealed.iv, sealed.ciphertext, AAD
    bad = {
        "tag": (iv, data[:-1] + flip(data[-1:]), aad),
        "ciphertext": (iv, flip(data), aad),
        "iv": (flip(iv), data, aad),
        "aad": (iv, data, flip(aad)),
        "cut": (iv, data[:-1], aad),
        "longer": (iv, data + b"\0", aad),
    }[what]
    request = unwrapping(ref, Encrypted(iv=bad[0], ciphertext=bad[1]), bad[2])
    for _ in range(3):
        reply = await ask(worker, request)
        assert isinstance(reply, Failure)
        assert "not-authentic" == reply.cause or "request" == reply.cause
        assert "C_Decrypt" == reply.function
        assert reply.rv in {0x05, 0x40}

    assert b"d" * 32 == (await ask(worker, unwrapping(ref, sealed))).plaintext


async def test_not_authentic_without_canary(worker):
    """With no known-good record an ambiguous error stays ambiguous."""
    ref = await only_ref(worker)
    sealed = await ask(worker, wrapping(ref, b"d" * 32))
    bad = Encrypted(iv=sealed.iv, ciphertext=flip(sealed.ciphertext))
    reply = await ask(worker, unwrapping(ref, bad))

    assert reply.cause in {"ambiguous", "request"}


@pytest.mark.parametrize("length", [0, 1, 15, 16])
async def test_too_short(worker, length):
    """What is no longer than a tag is refused, and nothing is read beyond it."""
    ref = await only_ref(worker)
    await prove(worker, ref)
    short = Encrypted(iv=b"i" * 12, ciphertext=b"c" * length)
    reply = await ask(worker, unwrapping(ref, short))

    assert isinstance(reply, Failure)
    assert Done() == await ask(worker, OpenSession())
    assert isinstance(await ask(worker, wrapping(ref, b"dek")), Encrypted)


async def test_no_such_key(worker):
    """A key that is not there is named, while the login holds."""
    await only_ref(worker)
    reply = await ask(worker, wrapping(UNKNOWN, b"dek"))

    assert "no-key" == reply.cause
    assert UNKNOWN.cka_id.hex() in reply.detail


async def test_destroyed_elsewhere(worker, hsm):
    """A key destroyed by another process is gone; one put in its place is found."""
    hsm.import_aes(MATERIAL, label=IMPORTED.label, cka_id=IMPORTED.cka_id)
    sealed = await ask(worker, wrapping(IMPORTED, b"dek"))
    assert isinstance(sealed, Encrypted)
    destroy(hsm, IMPORTED)
    assert "no-key" == (await ask(worker, unwrapping(IMPORTED, sealed))).cause
    assert () == await keys(worker, IMPORTED.label)
    hsm.import_aes(MATERIAL, label=IMPORTED.label, cka_id=IMPORTED.cka_id)

    assert b"dek" == (await ask(worker, unwrapping(IMPORTED, sealed))).plaintext


async def test_new_handle(worker, hsm):
    """A key whose handle changed behind us is found again under the same request."""
    hsm.import_aes(MATERIAL, label=IMPORTED.label, cka_id=IMPORTED.cka_id)
    sealed = await ask(worker, wrapping(IMPORTED, b"dek"))
    for _ in range(3):
        destroy(hsm, IMPORTED)
        hsm.import_aes(MATERIAL, label=IMPORTED.label, cka_id=IMPORTED.cka_id)
        reply = await ask(worker, unwrapping(IMPORTED, sealed))
        assert Decrypted(plaintext=b"dek") == reply


async def test_two_of_a_kind(worker, hsm):
    """Two keys with one label and one CKA_ID are not guessed between."""
    for material in (MATERIAL, bytes(32)):
        hsm.import_aes(material, label=IMPORTED.label, cka_id=IMPORTED.cka_id)
    reply = await ask(worker, wrapping(IMPORTED, b"dek"))

    assert "several-keys" == reply.cause


async def test_listing_while_keys_vanish(worker, hsm):
    """A listing shows what is there, while another process destroys and makes keys."""
    numbers = range(6)
    for number in numbers:
        hsm.import_aes(bytes([number]) * 32, label="many", cka_id=bytes([number]))
    one = KeyRef("many", b"\x00")
    command = [
        *("pkcs11-tool", "--module", softhsm_module(), "--token-label", TOKEN_LABEL),
        *("--login", "--pin", PIN, "--delete-object", "--type", "secrkey"),
        *("--label", one.label, "--id"),
    ]
    for number in numbers:
        with subprocess.Popen(
            [*command, f"{number:02x}"],
            env=hsm.env,
            stdout=subprocess.DEVNULL,
        ) as deleting:
            while deleting.poll() is None:
                seen = {key.ref.cka_id[0] for key in await keys(worker, "many")}
                assert set(numbers[number + 1 :]) <= seen <= set(numbers[number:])
        assert set(numbers[number + 1 :]) == {
            key.ref.cka_id[0] for key in await keys(worker, "many")
        }


async def test_fingerprint(worker, hsm):
    """The block is AES of it, whichever mechanism the token offers."""
    hsm.import_aes(MATERIAL, label=IMPORTED.label, cka_id=IMPORTED.cka_id)
    expected = []
    for mode in (modes.ECB(), modes.CBC(bytes(16))):
        encryptor = SoftCipher(algorithms.AES(MATERIAL), mode).encryptor()
        expected.append(encryptor.update(BLOCK) + encryptor.finalize())
    reply = await ask(worker, Fingerprint(ref=IMPORTED, block=BLOCK))

    assert isinstance(reply, Block)
    assert [reply.block] * 2 == expected


@pytest.mark.parametrize("length", [0, 15, 17, 32])
async def test_fingerprint_of_no_block(worker, length):
    """Anything but one block gives no fingerprint."""
    ref = await only_ref(worker)
    reply = await ask(worker, Fingerprint(ref=ref, block=b"b" * length))

    assert isinstance(reply, Failure)


async def test_generate(make):
    """A new KEK has exactly the attributes that the policy wants."""
    ref = KeyRef("fresh", b"hkms" + bytes(17))
    async with make(read_write=True) as worker:
        reply = await ask(worker, GenerateKey(ref=ref))
        assert isinstance(reply, Keys), reply
        (made,) = reply.keys
        assert (made,) == await keys(worker, "fresh")
        assert isinstance(await ask(worker, wrapping(ref, b"dek")), Encrypted)

    assert (ref, 32) == (made.ref, made.value_len)
    assert {
        "CKA_SENSITIVE": True,
        "CKA_EXTRACTABLE": False,
        "CKA_ENCRYPT": True,
        "CKA_DECRYPT": True,
        "CKA_TOKEN": True,
        "CKA_PRIVATE": True,
        "CKA_LOCAL": True,
        "CKA_ALWAYS_SENSITIVE": True,
        "CKA_NEVER_EXTRACTABLE": True,
    }.items() <= made.attributes.items()


@pytest.mark.skipif(not Path(SPY).exists(), reason="needs opensc-pkcs11")
async def test_generate_asks_for_no_more(make, directory):
    """C_GenerateKey is asked for encryption and decryption, and nothing else."""
    log = directory / "spy.log"
    spy = {"PKCS11SPY": softhsm_module(), "PKCS11SPY_OUTPUT": str(log)}
    async with make(spy, module=SPY, read_write=True) as worker:
        await ask(worker, GenerateKey(ref=KeyRef("fresh", b"\x01")))
    call = log.read_text().partition(": C_GenerateKey")[2].partition("\n\n")[0]
    wanted = {}
    for line in call.splitlines():
        words = line.split()
        if words[:1] and words[0].startswith("CKA_"):
            wanted[words[0]] = words[1]

    yes = {name for name, value in wanted.items() if value == "True"}
    no = {name for name, value in wanted.items() if value == "False"}
    assert {
        *("CKA_TOKEN", "CKA_PRIVATE", "CKA_SENSITIVE", "CKA_MODIFIABLE"),
        *("CKA_ENCRYPT", "CKA_DECRYPT"),
    } == yes
    assert {"CKA_EXTRACTABLE", "CKA_WRAP", "CKA_UNWRAP", "CKA_SIGN"} <= no
    assert {"CKA_LABEL", "CKA_ID", "CKA_VALUE_LEN"} <= set(wanted)


async def test_generate_without_read_write(worker):
    """A read-only session makes no key, says why, and does not try twice."""
    reply = await ask(worker, GenerateKey(ref=KeyRef("fresh", b"\x01")))

    assert isinstance(reply, Failure)
    assert ("operator", "C_GenerateKey", 0xB5) == (
        reply.cause,
        reply.function,
        reply.rv,
    )


async def test_two_calls_each(make, directory):
    """Once warm, a wrap and an unwrap cost the token two calls each."""
    if not Path(SPY).exists():
        pytest.skip("needs opensc-pkcs11")
    log = directory / "spy.log"
    spy = {"PKCS11SPY": softhsm_module(), "PKCS11SPY_OUTPUT": str(log)}
    async with make(spy, module=SPY) as worker:
        ref = await only_ref(worker)
        await ask(worker, wrapping(ref, b"dek"))
        before = len(log.read_text())
        sealed = await ask(worker, wrapping(ref, b"dek"))
        await ask(worker, unwrapping(ref, sealed))
        text = log.read_text()[before:]
    names = [line.partition(": ")[2] for line in text.splitlines() if ": C_" in line]

    assert ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"] == names[:4]
    assert ["C_CloseAllSessions"] == names[4:]


async def test_not_a_session_s_request(worker):
    """A second Configure is refused and changes nothing."""
    reply = await ask(worker, Configure(module="/nonexistent.so"))

    assert "internal" == reply.cause
    assert await only_ref(worker)


async def test_not_logged_in(hsm):
    """Without a login nothing is "not there": the worker says that it cannot see."""
    worker = await Worker.spawn(1, hsm.env)
    try:
        await worker.configure(configure())
        for request in (FindKeys(label=LABEL), wrapping(UNKNOWN, b"dek")):
            reply = await worker.sessions[0].exchange(request)
            assert "login" == reply.cause
    finally:
        await worker.leave()


async def test_answer_too_long(worker):
    """An answer that does not fit a message is an error, not silence."""
    detail = "x" * messages.MAX_MESSAGE_BYTES
    request = wrapping(KeyRef(detail[: messages.MAX_MESSAGE_BYTES - 200], b""), b"dek")
    reply = await ask(worker, request)

    assert isinstance(reply, Failure)
    assert reply.cause in {"internal", "no-key"}
