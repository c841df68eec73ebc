"""Conformance, "key_id": items 15, 16 and 19 to 22."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.conformance.clients import DEK, NOT_AUTHENTIC, connected, in_turn, sync_said
from tests.conformance.tokens import import_kek
from tests.support import PIN, TOKEN_LABEL, SoftHsm, softhsm_module

KEK = bytes(range(32))
CLIENTS = 16
PAIRS_EACH = 313  # of a Status and an Encrypt: ten thousand calls together


def expected_key_id(kek: bytes) -> str:
    """Return what docs/spec.md makes of a key, by other means than the server's."""
    encryptor = Cipher(algorithms.AES(kek), modes.ECB()).encryptor()  # noqa: S305
    block = encryptor.update(b"hsm-kms fp block")
    digest = hashlib.sha256(b"hsm-kms/fingerprint/1" + block).digest()[:16]
    return base64.b32encode(digest).decode().rstrip("=").lower()


@pytest.fixture
def imported(directory):
    """Make tokens of the same key, each with a serial and a CKA_ID of its own."""

    def make(name: str) -> SoftHsm:
        hsm = SoftHsm(directory / name)
        hsm.init_token()
        return import_kek(hsm, KEK, name.encode())

    return make


@pytest.mark.timeout(110)
async def test_15_status_and_encrypt_never_disagree(served):
    """Over many clients at once every Encrypt has the key_id of the last Status."""
    pairs = []

    async def pair(client) -> None:
        status = await client.status()
        sealed = await client.encrypt()
        pairs.append((status.healthz, status.key_id == sealed.key_id))

    async with connected(served, CLIENTS) as clients:
        await asyncio.gather(
            *(in_turn(PAIRS_EACH, lambda c=c: pair(c)) for c in clients)
        )

    assert PAIRS_EACH * CLIENTS == len(pairs)
    assert {("ok", True)} == set(pairs)


def test_16_stable_over_restarts(make_plugin, hsm, directory):
    """Server, token and state directory may all be new: the key_id stays."""
    plugin = make_plugin(hsm)
    seen = []
    for end in (plugin.stop, plugin.kill, plugin.stop):
        plugin.start().wait_healthz("ok")
        seen.append(plugin.status().key_id)
        end()
    elsewhere = make_plugin(hsm.copy(directory / "moved")).start()
    elsewhere.wait_healthz("ok")
    seen.append(elsewhere.status().key_id)

    assert [seen[0]] * 4 == seen


def test_19_the_same_on_every_token(make_plugin, imported):
    """Two tokens that hold one key have one key_id, and open each other's records."""
    one, other = (make_plugin(imported(name)).start() for name in ("one", "two"))
    for plugin in (one, other):
        plugin.wait_healthz("ok")
    key_id = one.status().key_id

    assert key_id == other.status().key_id
    for here, there in ((one, other), (other, one)):
        sealed = here.encrypt(DEK)
        assert key_id == sealed.key_id
        assert DEK == there.decrypt(sealed.ciphertext, key_id)
        assert b"ping" == there.v1_decrypt(here.v1_encrypt(b"ping"))


def test_19_the_scope_keeps_clusters_apart(make_plugin, imported):
    """Under the same key a record of another cluster is not authentic."""
    hsm = imported("one")
    one, other = (make_plugin(hsm, scope=scope).start() for scope in ("eu", "us"))
    for plugin in (one, other):
        plugin.wait_healthz("ok")
    sealed = one.encrypt(DEK)

    assert sealed.key_id == other.status().key_id
    assert NOT_AUTHENTIC == sync_said(
        lambda: other.decrypt(sealed.ciphertext, sealed.key_id)
    )


def test_20_tells_nothing(served):
    """The key_id is a bare hash: no PIN, label, serial, CKA_ID, host or path in it."""
    key_id = served.status().key_id
    tokens = served.cli("token", "list", "--module", softhsm_module()).stdout
    listed = served.hsm.pkcs11_tool("--list-objects", "--type", "secrkey").stdout
    told = set(re.findall(r"\w{4,}", f"{tokens} {listed} {served.socket}"))

    assert re.fullmatch("[a-z2-7]{26}", key_id)
    assert {"label", "tmp"} & told
    for word in {PIN, TOKEN_LABEL, socket.gethostname(), *told}:
        assert word.lower() not in key_id


def test_21_short_plain_text(make_plugin, hsm):
    """The key_id is printable ASCII of 64 bytes at most, its suffix included."""
    plugin = make_plugin(hsm, keys={"suffix": "a0" * 8}).start()
    plugin.wait_healthz("ok")
    key_id = plugin.status().key_id

    assert re.fullmatch(r"[!-~]{1,64}", key_id)
    assert key_id.endswith("." + "a0" * 8)
    assert key_id == plugin.encrypt(DEK).key_id


def test_22_names_the_key_on_the_token(make_plugin, imported):
    """The key_id follows from the bytes of the KEK in the token, and nothing else."""
    plugin = make_plugin(imported("one")).start()
    plugin.wait_healthz("ok")

    assert expected_key_id(KEK) == plugin.status().key_id
    assert expected_key_id(KEK) == plugin.encrypt(DEK).key_id
