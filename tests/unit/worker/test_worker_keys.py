"""Finding, identifying and generating keys by a session on a real token."""

from __future__ import annotations

import subprocess

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hsm_kms.ipc import values
from hsm_kms.ipc.ckr import BY_NAME
from hsm_kms.ipc.fingerprints import FINGERPRINT_BLOCK, fingerprint_of
from hsm_kms.ipc.messages import (
    Decrypted,
    Destroy,
    Done,
    Encrypted,
    Failure,
    FindKeys,
    GenerateKey,
    KeyPage,
    KeyRef,
    Relabel,
)
from tests.harness.one_worker import (
    Named,
    ask,
    canary,
    gate,
    imported,
    keys,
    one_worker,
    only_key,
    unwrapping,
    wrapping,
)
from tests.harness.softhsm import PIN, TOKEN_LABEL, softhsm_module
from tests.harness.spy import Spy
from tests.harness.token_keys import IMPORTED, LABEL, MATERIAL, create

DEVICE_ERROR = BY_NAME["CKR_DEVICE_ERROR"]


def destroy(hsm, ref):
    """Destroy a key from another process."""
    hsm.pkcs11_tool(
        *("--delete-object", "--type", "secrkey"),
        *("--label", ref.label, "--id", ref.cka_id.hex()),
    )


async def test_slow_search(hsm, pin_file, directory, shim):
    """A search that takes long is spread over several pages, each of which is short."""
    env, login = {**hsm.env, **shim.env}, gate(pin_file, directory)
    async with one_worker(env, login, module=str(shim.module)) as worker:
        shim.set("C_FindObjectsInit sleep=300")
        first = await ask(worker, FindKeys(label=LABEL))
        assert ((), 0) == (first.keys, first.next)

        listed = await keys(worker, LABEL)
        key = Named(listed[0].ref, listed[0].fingerprint)
        assert 1 == len(listed)
        assert isinstance(await ask(worker, canary(key)), Encrypted)


async def test_destroyed_elsewhere(worker, hsm):
    """A key that another process replaced is found again, one destroyed is not."""
    create(hsm)
    sealed = await ask(worker, wrapping(imported(), b"dek"))
    assert isinstance(sealed, Encrypted)
    destroy(hsm, IMPORTED)
    assert "no-key" == (await ask(worker, unwrapping(imported(), sealed))).cause
    assert () == await keys(worker, IMPORTED.label)
    create(hsm)

    assert b"dek" == (await ask(worker, unwrapping(imported(), sealed))).plaintext


async def test_new_handle(worker, hsm):
    """A key whose handle became stale is found again under the same request."""
    create(hsm)
    sealed = await ask(worker, wrapping(imported(), b"dek"))
    for _ in range(3):
        destroy(hsm, IMPORTED)
        create(hsm)
        reply = await ask(worker, unwrapping(imported(), sealed))
        assert Decrypted(plaintext=b"dek") == reply


async def test_two_of_a_kind(worker, hsm):
    """Two keys with the same label and CKA_ID are told apart by their fingerprints."""
    one, two = imported(), imported(value=MATERIAL[::-1])
    create(hsm)
    create(hsm, value=MATERIAL[::-1])
    assert {one.fingerprint, two.fingerprint} == {
        key.fingerprint for key in await keys(worker, IMPORTED.label)
    }
    for key, other in ((one, two), (two, one)):
        sealed = await ask(worker, wrapping(key, b"dek"))
        reply = await ask(worker, unwrapping(other, sealed))
        assert reply.cause in {"unsettled", "request"}
        assert Decrypted(plaintext=b"dek") == await ask(worker, unwrapping(key, sealed))


async def test_destroy_one_of_two(make, hsm):
    """Of two keys with the same names, the one that is meant is destroyed."""
    one, two = imported(), imported(value=MATERIAL[::-1])
    create(hsm)
    create(hsm, value=MATERIAL[::-1])
    async with make(read_write=True) as worker:
        moved = Relabel(ref=IMPORTED, label="moved", fingerprint=two.fingerprint)
        assert Done() == await ask(worker, moved)
        (seen,) = await keys(worker, "moved")
        assert two.fingerprint == seen.fingerprint
        back = Relabel(ref=seen.ref, label=IMPORTED.label)
        assert Done() == await ask(worker, back)
        unclear = await ask(worker, Destroy(ref=IMPORTED))
        assert "several-keys" == unclear.cause
        gone = Destroy(ref=IMPORTED, fingerprint=one.fingerprint)
        assert Done() == await ask(worker, gone)
        assert "other-key" == (await ask(worker, gone)).cause
        (left,) = await keys(worker, IMPORTED.label)

    assert two.fingerprint == left.fingerprint


async def test_canary_runs_on_the_listed_handle(make, directory):
    """After a listing the canary uses the handle whose attributes were read."""
    log = directory / "spy.log"
    spy = Spy(log)
    async with make(spy.env, module=spy.module) as worker:
        key = await only_key(worker)
        before = len(log.read_text())
        assert isinstance(await ask(worker, canary(key)), Encrypted)
        text = log.read_text()[before:]
    names = [line.partition(": ")[2] for line in text.splitlines() if ": C_" in line]

    assert ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"] == names


async def test_fault_while_a_kept_canary_is_read(make, shim):
    """A failure of the token is not taken for another key under the same names."""
    async with make(shim.env, module=str(shim.module)) as worker:
        key = await only_key(worker)
        made = await ask(worker, canary(key))
        kept = values.KeptCanary(
            cipher=values.Cipher.GCM,
            aad=b"canary",
            iv=made.iv,
            ciphertext=made.ciphertext,
        )
        again = msgspec.structs.replace(canary(key), kept=kept)
        other = msgspec.structs.replace(
            again, kept=msgspec.structs.replace(kept, ciphertext=bytes(48))
        )
        shim.set(f"C_Decrypt skip=1 count=1 rv={DEVICE_ERROR}")
        assert isinstance(await ask(worker, again), Encrypted)
        assert "other-key" == (await ask(worker, other)).cause
        shim.set(f"C_Decrypt skip=1 rv={DEVICE_ERROR}")
        assert "device" == (await ask(worker, again)).cause


async def test_another_key_under_the_names(worker, hsm):
    """A request never runs under another key than the one it names."""
    create(hsm)
    sealed = await ask(worker, wrapping(imported(), b"dek"))
    destroy(hsm, IMPORTED)
    create(hsm, value=MATERIAL[::-1])
    for request in (wrapping(imported(), b"dek"), unwrapping(imported(), sealed)):
        reply = await ask(worker, request)
        assert "other-key" == reply.cause
        assert imported().fingerprint in reply.detail
        assert imported(value=MATERIAL[::-1]).fingerprint in reply.detail


async def test_listing_while_keys_vanish(worker, hsm):
    """A listing succeeds while another process destroys and generates keys."""
    numbers = range(6)
    for number in numbers:
        create(hsm, KeyRef("many", bytes([number])))
    one = KeyRef("many", b"\x00")
    command = [
        *("pkcs11-tool", "--module", softhsm_module(), "--token-label", TOKEN_LABEL),
        *("--login", "--pin", PIN, "--delete-object", "--type", "secrkey"),
        *("--label", one.label, "--id"),
    ]
    for number in numbers:
        with subprocess.Popen(  # noqa: ASYNC220 - polled between two listings
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
    """A fingerprint is AES of the block, by ECB or by CBC with a zero IV."""
    create(hsm)
    for mode in (modes.ECB(), modes.CBC(bytes(16))):  # noqa: S305 - one block
        encryptor = Cipher(algorithms.AES(MATERIAL), mode).encryptor()
        block = encryptor.update(FINGERPRINT_BLOCK) + encryptor.finalize()
        (key,) = await keys(worker, IMPORTED.label)
        assert fingerprint_of(block) == key.fingerprint


async def test_generate(make):
    """A new KEK has exactly the attributes that the key policy requires."""
    ref = KeyRef("fresh", b"hkms" + bytes(17))
    async with make(read_write=True) as worker:
        reply = await ask(worker, GenerateKey(ref=ref))
        assert isinstance(reply, KeyPage), reply
        (made,) = reply.keys
        (seen,) = await keys(worker, "fresh")
        assert made == msgspec.structs.replace(seen, fingerprint=None)
        key = Named(ref, seen.fingerprint)
        assert isinstance(await ask(worker, wrapping(key, b"dek")), Encrypted)

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


async def test_generate_asks_for_no_more(make, directory):
    """C_GenerateKey asks for encryption and decryption, and for no other use."""
    log = directory / "spy.log"
    spy = Spy(log)
    async with make(spy.env, module=spy.module, read_write=True) as worker:
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
    """A read-only session generates no key, gives the reason, and does not retry."""
    reply = await ask(worker, GenerateKey(ref=KeyRef("fresh", b"\x01")))

    assert isinstance(reply, Failure)
    assert ("operator", "C_GenerateKey", 0xB5) == (
        reply.cause,
        reply.function,
        reply.rv,
    )
