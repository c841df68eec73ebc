"""Conformance, "Status": items 8 to 14, of which 9 to 11 as the design has them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from functools import partial

import pytest

from hsm_kms.wrapping.record import Kind
from tests.harness.plugin import code_of
from tests.harness.softhsm import PIN
from tests.harness.token_keys import make_key
from tests.harness.wait import wait_for
from tests.system.conformance.clients import (
    DEK,
    NOT_HELD,
    at_rate,
    connected,
    quantile,
    said,
    shaped,
    show,
    stopped,
    sync_said,
    take_token,
    timed,
    unharmed,
    workers_of,
)
from tests.system.conformance.inside import restart, start_well
from tests.system.conformance.wrappings import apis, each_wrapping, wrapping_of

SUSTAINED_SECONDS = float(os.environ.get("HSM_KMS_SUSTAINED_SECONDS", "2"))
SESSIONS = 8  # of two workers
DOWN_SECONDS = 25  # the design's bound from the fault to the sentence


def codes(plugin, sealed) -> tuple[str, str]:
    """Return how an Encrypt and the Decrypt of a record end."""
    return (
        code_of(lambda: plugin.encrypt(DEK)),
        code_of(lambda: plugin.decrypt(sealed.ciphertext, sealed.key_id)),
    )


def wait_failed(plugin) -> str:
    """Wait until Status has a sentence; return it."""
    wait_for(lambda: plugin.status().healthz != "ok", DOWN_SECONDS)
    return plugin.status().healthz


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
def test_8_version(make_plugin, hsm, version):
    """The configured version is in every answer: well, failed, restarted."""
    plugin = make_plugin(hsm, apis={"v2": {"enabled": True, "version": version}})
    plugin.start().wait_healthz("ok")
    well = plugin.status().version
    take_token(plugin)
    wait_failed(plugin)
    failed = plugin.status().version
    plugin.stop()
    again = plugin.start().status().version

    assert [version] * 3 == [well, failed, again]


@each_wrapping
def test_9_ok_while_the_token_is_well(served):
    """Healthz is ok, and both calls work."""
    sealed = served.encrypt(DEK)

    assert "ok" == served.status().healthz
    assert ("OK", "OK") == codes(served, sealed)


def test_9_token_down_and_back(plugin, hsm):
    """Healthz is ok exactly while both calls work, over an outage and after it."""
    sealed = plugin.encrypt(DEK)
    take_token(plugin)
    wait_failed(plugin)
    down = codes(plugin, sealed)
    hsm.put_back()
    plugin.wait_healthz("ok")

    assert ("UNAVAILABLE", "UNAVAILABLE") == down
    assert ("OK", "OK") == codes(plugin, sealed)


def test_9_never_reached(make_plugin, hsm, served):
    """With no key_id to give the RPC itself fails, and so do the calls."""
    hsm.take_away()
    plugin = make_plugin(hsm, apis=apis("software", v1="token")).start()
    told = sync_said(plugin.status)

    assert ("UNAVAILABLE", "the token is not ready: see hsm-kms check") == told
    assert ("UNAVAILABLE", "UNAVAILABLE") == codes(plugin, served.encrypt(DEK))


def test_9_not_reached_since_the_start(mixed, hsm):
    """A restart in an outage gives a sentence with the key_id of before."""
    sealed = mixed.encrypt(DEK)
    mixed.stop()
    hsm.take_away()
    status = mixed.start().status()

    assert sealed.key_id == status.key_id
    assert "hsm-kms check" in status.healthz
    assert ("UNAVAILABLE", "UNAVAILABLE") == codes(mixed, sealed)
    assert "UNAVAILABLE" == code_of(lambda: mixed.v1_encrypt(DEK))


def use(plugin, key_id) -> object:
    """Restart under this key; return a record made by it."""
    plugin.stop()
    plugin.config["keys"]["current"] = key_id
    plugin.write_config()
    restart(plugin)
    return plugin.encrypt(DEK)


def test_9_current_key_lost(mixed, hsm):
    """Without the current key nothing is encrypted; keys still held decrypt."""
    other = mixed.encrypt(DEK)
    make_key(hsm, b"second")
    listed = json.loads(mixed.cli("keys", "list", "-o", "json").stdout)
    (second,) = {key["key_id"] for key in listed} - {other.key_id}
    sealed, cipher = use(mixed, second), mixed.v1_encrypt(DEK)
    hsm.pkcs11_tool("--delete-object", "--type", "secrkey", "--id", b"second".hex())
    mixed.wait_healthz("is not on the token")

    assert second == sealed.key_id == mixed.status().key_id
    for call in (mixed.encrypt, mixed.v1_encrypt):
        assert "FAILED_PRECONDITION" == code_of(partial(call, DEK))
    assert NOT_HELD == sync_said(lambda: mixed.decrypt(sealed.ciphertext, second))
    assert NOT_HELD == sync_said(lambda: mixed.v1_decrypt(cipher))
    assert DEK == mixed.decrypt(other.ciphertext, other.key_id)


def test_9_current_key_forbidden(make_plugin, empty_hsm):
    """A key that breaks the policy opens what it sealed and seals no more."""
    make_key(empty_hsm, EXTRACTABLE=True)
    both = apis("software", v1="token")
    plugin = make_plugin(empty_hsm, apis=both, keys={"policy": "warn"})
    start_well(plugin)
    cipher, sealed = plugin.v1_encrypt(DEK), plugin.encrypt(DEK)
    plugin.stop()
    plugin.config["keys"]["policy"] = "enforce"
    plugin.write_config()
    plugin.start().wait_healthz("breaks the key policy")

    assert sealed.key_id == plugin.status().key_id
    assert ("FAILED_PRECONDITION", "OK") == codes(plugin, sealed)
    assert "FAILED_PRECONDITION" == code_of(lambda: plugin.v1_encrypt(DEK))
    assert DEK == plugin.v1_decrypt(cipher)


def test_10_sentence_when_the_token_is_gone(plugin):
    """A sentence comes within seconds, no Status hangs, and it tells no secret."""
    answers, took = [], []

    def asked() -> bool:
        began = time.monotonic()
        answers.append(plugin.status())
        took.append(time.monotonic() - began)
        return answers[-1].healthz != "ok"

    began = time.monotonic()
    take_token(plugin)
    wait_for(asked, DOWN_SECONDS)
    show("sentence", [time.monotonic() - began])
    sentence = answers[-1].healthz

    assert max(took) < 1
    assert re.fullmatch(r"[a-zA-Z0-9 ,;.#-]{20,200}", sentence)
    assert PIN not in sentence


def test_11_key_id_in_every_answer(plugin, hsm):
    """The key_id is there, the same, before, in and after outage and restart."""
    key_ids, sentences = set(), set()

    def asked(healthz: str | None = None) -> bool:
        status = plugin.status()
        key_ids.add(status.key_id)
        sentences.add(status.healthz)
        return (status.healthz == "ok") is (healthz == "ok")

    assert asked("ok")
    take_token(plugin)
    wait_for(asked, DOWN_SECONDS)
    plugin.stop()
    plugin.start()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert asked()
    hsm.put_back()
    wait_for(lambda: asked("ok"))

    (key_id,) = key_ids
    assert 1 <= len(key_id.encode()) <= 1024
    assert len(sentences) > 1


async def test_12_status_in_milliseconds(served):
    """Status takes under 10 ms; the bound here is ten times that."""
    async with connected(served) as (client,):
        took = await timed(500, client.status)
    show("Status", took)

    assert quantile(took, 0.99) < 0.1


async def test_13_sustained_status_beside_decrypt(served):
    """A hundred Status a second leave the time of a Decrypt as it was."""
    async with connected(served, 2) as (one, other):
        sealed = await one.encrypt()

        async def decrypt() -> None:
            assert DEK == await one.decrypt(sealed.ciphertext, sealed.key_id)

        async def status() -> None:
            assert "ok" == (await other.status()).healthz

        alone = await timed(200, decrypt)
        flood = asyncio.create_task(at_rate(100, SUSTAINED_SECONDS, status))
        beside = []
        while not flood.done():
            beside += await timed(10, decrypt)
            await asyncio.sleep(0.02)
    show("Decrypt alone", alone)
    show("Decrypt beside the flood", beside)

    assert round(100 * SUSTAINED_SECONDS) == flood.result()
    assert quantile(beside, 0.5) < 10 * quantile(alone, 0.5) + 0.01


@each_wrapping
async def test_14_status_while_every_session_hangs(served):
    """Status answers at once while no call on the token comes back.

    What a local KEK wraps goes on meanwhile.
    """
    held = served.status().key_id
    cold = [shaped(Kind.DEK_BY_TOKEN, held) for _ in range(2 * SESSIONS)]
    with unharmed(served):
        async with connected(served, 2) as (one, other):
            with stopped(workers_of(served)):
                calls = [
                    asyncio.create_task(said(one.decrypt(each, held, seconds=0.8)))
                    for each in cold
                ]
                await asyncio.sleep(0.1)
                took = await timed(200, other.status)
                sealed = await said(other.encrypt(seconds=0.5))
                ended = {told.code for told in await asyncio.gather(*calls)}
        wait_for(lambda: code_of(lambda: served.v1_encrypt(DEK)) == "OK")
    show("Status", took)

    assert quantile(took, 0.99) < 0.1
    assert ended <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
    assert (wrapping_of(served) != "token") is (sealed.code == "OK")
