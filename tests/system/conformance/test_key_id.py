"""Conformance, "key_id": items 15, 16 and 19 to 21; 22 is with the local KEKs."""

from __future__ import annotations

import asyncio
import re
import socket
from functools import partial

import pytest

from hsm_kms.errors import OTHER_SCOPE
from hsm_kms.wrapping.record import Kind, Record
from tests.harness.command_line import HSM_KMS
from tests.harness.softhsm import PIN, TOKEN_LABEL, SoftHsm, softhsm_module
from tests.system.conformance.clients import (
    DEK,
    NOT_AUTHENTIC,
    connected,
    in_turn,
    sync_said,
)
from tests.system.conformance.inside import start_well
from tests.system.conformance.replica import key_id_of
from tests.system.conformance.tokens import import_kek
from tests.system.conformance.wrappings import apis, both_kinds, wrapping_of

KEK = bytes(range(32))
CLIENTS = 16
TELLING = 4  # letters; a hash may contain shorter words by chance
# Pairs of a Status and an Encrypt, of each client: ten thousand calls together.
PAIRS_EACH = {"token": 113, "software": 200}
KINDS = [Kind.DEK_BY_TOKEN, Kind.DEK_BY_LOCAL_KEK]


def kinds(*records: bytes) -> list[Kind]:
    """Return the kinds of these records."""
    return [Record.decode(record).header.kind for record in records]


@pytest.fixture
def imported(directory):
    """Make tokens of the same key, each with a serial and a CKA_ID of its own."""

    def make(name: str) -> SoftHsm:
        hsm = SoftHsm(directory / name)
        hsm.init_token()
        return import_kek(hsm, KEK, name.encode())

    return make


@both_kinds
@pytest.mark.timeout(110)
async def test_15_status_and_encrypt_never_disagree(served):
    """With many clients at once every Encrypt has the key_id of the last Status."""
    pairs, each = [], PAIRS_EACH[wrapping_of(served)]

    async def pair(client) -> None:
        status = await client.status()
        sealed = await client.encrypt()
        pairs.append((status.healthz, status.key_id == sealed.key_id))

    async with connected(served, CLIENTS) as clients:
        await asyncio.gather(*(in_turn(each, lambda c=c: pair(c)) for c in clients))

    assert each * CLIENTS == len(pairs)
    assert {("ok", True)} == set(pairs)


def test_16_stable_over_restarts(make_plugin, hsm, directory):
    """The key_id survives a new process, state directory and copy of the token."""
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
    """Nodes whose tokens hold the same key have one key_id and read each other."""
    mixed = apis("token", v1="software")
    one, other = (make_plugin(imported(name), apis=mixed) for name in ("one", "two"))
    for plugin in (one, other):
        start_well(plugin)
    key_id = one.status().key_id

    assert key_id_of(KEK) == key_id == other.status().key_id
    for here, there in ((one, other), (other, one)):
        sealed, cipher = here.encrypt(DEK), here.v1_encrypt(b"ping")
        assert KINDS == kinds(sealed.ciphertext, cipher)
        assert key_id == sealed.key_id
        assert DEK == there.decrypt(sealed.ciphertext, key_id)
        assert b"ping" == there.v1_decrypt(cipher)


def test_19_the_scope_keeps_clusters_apart(make_plugin, imported):
    """A record of another cluster is not authentic, even under the same key."""
    hsm = imported("one")
    mixed = apis("token", v1="software")
    one, other = (make_plugin(hsm, scope=scope, apis=mixed) for scope in ("eu", "us"))
    for plugin in (one, other):
        start_well(plugin)
    key_id = other.status().key_id
    for here, there in ((one, other), (other, one)):
        records = here.encrypt(DEK).ciphertext, here.v1_encrypt(DEK)
        assert KINDS == kinds(*records)
        for record in records:
            assert key_id == Record.decode(record).header.key_id
            assert DEK == here.decrypt(record, key_id)
            assert NOT_AUTHENTIC == sync_said(partial(there.v1_decrypt, record))
        refused = [
            e for e in there.events("request") if e["code"] == "INVALID_ARGUMENT"
        ]
        assert {True} == {OTHER_SCOPE in each["reason"] for each in refused}


def test_20_tells_nothing(served):
    """The key_id contains no PIN, label, serial, CKA_ID, host name or path."""
    key_id = served.status().key_id
    command = (*HSM_KMS, "token", "list", "--module")
    tokens = served.hsm.run(*command, softhsm_module()).stdout
    listed = served.hsm.pkcs11_tool("--list-objects", "--type", "secrkey").stdout
    told = set(re.findall(r"\w{4,}", f"{tokens} {listed} {served.socket}"))

    assert re.fullmatch("[a-z2-7]{26}", key_id)
    assert {"label", "serial"} <= told
    for word in {PIN, TOKEN_LABEL, socket.gethostname(), *told}:
        assert len(word) < TELLING or word.lower() not in key_id


def test_21_short_plain_text(make_plugin, hsm):
    """The key_id, suffix included, is at most 64 bytes of printable ASCII."""
    plugin = make_plugin(hsm, keys={"suffix": "a0" * 8}).start()
    plugin.wait_healthz("ok")
    key_id = plugin.status().key_id

    assert re.fullmatch(r"[!-~]{1,64}", key_id)
    assert key_id.endswith("." + "a0" * 8)
    assert key_id == plugin.encrypt(DEK).key_id
