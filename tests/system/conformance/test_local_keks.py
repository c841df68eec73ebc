"""Conformance where a local KEK wraps: items 22, 29, 33 and 37, and `accept_local`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter

import pytest

from hsm_kms.wrapping.record import Kind, Record
from tests.harness.token_keys import make_key
from tests.harness.wait import patient, wait_for
from tests.system.conformance.clients import DEK, connected, sync_said
from tests.system.conformance.inside import metrics, restart, start_well
from tests.system.conformance.replica import key_id_of
from tests.system.conformance.tokens import import_kek
from tests.system.conformance.wrappings import WRAPPINGS, apis

KEK = bytes(range(32))
LOW = 20  # uses of a local KEK, instead of a million
GENERATED = 'hsm_kms_local_keks_created_total{result="ok"}'
REFUSED = (
    "FAILED_PRECONDITION",
    "the configuration refuses data encrypted with local KEKs",
)


@pytest.fixture
def software(make_plugin, hsm):
    """A server of this test's own in which local KEKs wrap."""
    return start_well(make_plugin(hsm, apis=apis("software")))


def reload(plugin) -> None:
    """Write the configuration as it is now, and wait until the server applied it."""
    before = len(plugin.events("configuration applied"))
    plugin.write_config()
    os.kill(plugin.process.pid, signal.SIGHUP)
    wait_for(lambda: len(plugin.events("configuration applied")) > before)


async def test_22_and_29_replaced_after_its_uses(
    make_plugin, token_template, directory
):
    """A local KEK is replaced after its uses; no request fails, the key_id stays."""
    plugin = make_plugin(
        import_kek(token_template.copy(directory / "imported"), KEK),
        apis=apis("software"),
        local_keys={"max_uses": LOW},
    )
    start_well(plugin)
    async with connected(plugin) as (client,):
        key_id = (await client.status()).key_id
        sealed = []
        async with asyncio.timeout(patient()):
            while len({nested(each) for each in sealed}) < 4:
                sealed += [await client.encrypt() for _ in range(LOW)]
        opened = {await client.v1_decrypt(each.ciphertext) for each in sealed}
        key_ids = {key_id, (await client.status()).key_id}
    headers = [Record.decode(each.ciphertext).header for each in sealed]
    uses = Counter(header.nested for header in headers)
    *replaced, last = uses
    now = metrics(plugin)

    assert {key_id_of(KEK)} == key_ids | {each.key_id for each in sealed}
    assert {key_id_of(KEK)} == {header.key_id for header in headers}
    assert {DEK} == opened
    assert all(uses[kek] >= LOW for kek in replaced)
    # None is used again once it is replaced.
    in_turn = [kek for kek, count in uses.items() for _ in range(count)]
    assert in_turn == [header.nested for header in headers]
    assert len(uses) <= now[GENERATED] <= len(uses) + 1
    assert now["hsm_kms_local_kek_uses"] in {0, uses[last]}


def nested(sealed) -> bytes:
    """Return the local KEK that a record carries."""
    return Record.decode(sealed.ciphertext).header.nested


@pytest.mark.parametrize("writer", WRAPPINGS)
def test_33_replicas_of_other_wrappings(serving, writer):
    """Nodes of every wrapping mode read what the others wrote, in both APIs."""
    here = serving(writer)
    sealed = [here.encrypt(bytes([n]) * 32) for n in range(5)]
    for there in map(serving, WRAPPINGS):
        for n, each in enumerate(sealed):
            assert bytes([n]) * 32 == there.decrypt(each.ciphertext, each.key_id)
            assert bytes([n]) * 32 == there.v1_decrypt(each.ciphertext)


def test_37_while_another_key_is_current(software, hsm):
    """Records by local KEKs of a former current key decrypt, after a restart too."""
    old = software.encrypt(DEK)
    make_key(hsm, b"second")
    listed = json.loads(software.cli("keys", "list", "-o", "json").stdout)
    (second,) = {key["key_id"] for key in listed} - {old.key_id}
    software.config["keys"]["current"] = second
    reload(software)
    wait_for(lambda: software.status().key_id == second)
    new = software.encrypt(DEK)
    warm = [software.decrypt(each.ciphertext, each.key_id) for each in (old, new)]
    restart(software)
    cold = [software.decrypt(each.ciphertext, each.key_id) for each in (old, new)]

    assert [DEK, DEK] == warm == cold
    assert second == new.key_id == Record.decode(new.ciphertext).header.key_id
    assert Record.decode(new.ciphertext).header.kind == Kind.DEK_BY_LOCAL_KEK


def test_no_record_by_a_local_kek_is_accepted(software):
    """With `accept_local: false` records by local KEKs are refused, others are not."""
    local = software.encrypt(DEK)
    key_id = local.key_id
    assert DEK == software.decrypt(local.ciphertext, key_id)
    software.config |= {"apis": apis("token"), "local_keys": {"accept_local": False}}
    reload(software)
    told = [sync_said(lambda: software.decrypt(local.ciphertext, key_id))]
    restart(software)
    told.append(sync_said(lambda: software.decrypt(local.ciphertext, key_id)))
    told.append(sync_said(lambda: software.v1_decrypt(local.ciphertext)))
    by_token = software.encrypt(DEK)

    assert [REFUSED] * 3 == told
    assert Kind.DEK_BY_TOKEN == Record.decode(by_token.ciphertext).header.kind
    assert DEK == software.decrypt(by_token.ciphertext, key_id)
    assert "ok" == software.healthz()
