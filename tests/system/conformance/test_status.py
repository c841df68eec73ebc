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
from tests.harness.wait import patient, wait_for
from tests.system.conformance.clients import (
    DEK,
    NOT_HELD,
    TIMEOUT,
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
from tests.system.conformance.inside import all_sessions_busy, restart, start_well
from tests.system.conformance.wrappings import apis, each_wrapping, wrapping_of

SUSTAINED_SECONDS = float(os.environ.get("HSM_KMS_SUSTAINED_SECONDS", "2"))
SESSIONS = 8  # of two workers
HANG_SECONDS = patient(2.0)  # deadline of requests on a token that hangs
DOWN_SECONDS = 60.0  # by design 25 from the fault to the error message


def codes(plugin, sealed) -> tuple[str, str]:
    """Return the codes of an Encrypt and of the Decrypt of a record."""
    return (
        code_of(lambda: plugin.encrypt(DEK)),
        code_of(lambda: plugin.decrypt(sealed.ciphertext, sealed.key_id)),
    )


def wait_failed(plugin) -> str:
    """Wait until Status has an error message; return it."""
    wait_for(lambda: plugin.status().healthz != "ok", DOWN_SECONDS)
    return plugin.status().healthz


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
def test_8_version(make_plugin, hsm, version):
    """Every Status has the configured version: healthy, failed, and restarted."""
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
    """Healthz is ok, and Encrypt and Decrypt work."""
    sealed = served.encrypt(DEK)

    assert "ok" == served.status().healthz
    assert ("OK", "OK") == codes(served, sealed)


def test_9_token_down_and_back(plugin, hsm):
    """Healthz is ok before and after an outage, and an error message in it."""
    sealed = plugin.encrypt(DEK)
    take_token(plugin)
    wait_failed(plugin)
    down = codes(plugin, sealed)
    hsm.put_back()
    plugin.wait_healthz("ok")

    assert ("UNAVAILABLE", "UNAVAILABLE") == down
    assert ("OK", "OK") == codes(plugin, sealed)


def test_9_never_reached(make_plugin, hsm, served):
    """A server that never reached its token fails Status, Encrypt and Decrypt."""
    hsm.take_away()
    plugin = make_plugin(hsm, apis=apis("software", v1="token")).start()
    told = sync_said(plugin.status)

    assert ("UNAVAILABLE", "the token is not ready: see hsm-kms check") == told
    assert ("UNAVAILABLE", "UNAVAILABLE") == codes(plugin, served.encrypt(DEK))


def test_9_not_reached_since_the_start(mixed, hsm):
    """After a restart in an outage Status has an error message and the old key_id."""
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
    """If the current key is lost, Encrypt fails; other keys still decrypt."""
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
    """A key that violates the policy decrypts its records and encrypts no more."""
    make_key(empty_hsm, EXTRACTABLE=True)
    both = apis("software", v1="token")
    plugin = make_plugin(empty_hsm, apis=both, keys={"policy": "warn"})
    start_well(plugin)
    cipher, sealed = plugin.v1_encrypt(DEK), plugin.encrypt(DEK)
    plugin.stop()
    plugin.config["keys"]["policy"] = "enforce"
    plugin.write_config()
    plugin.start().wait_healthz("violates the key policy")

    assert sealed.key_id == plugin.status().key_id
    assert ("FAILED_PRECONDITION", "OK") == codes(plugin, sealed)
    assert "FAILED_PRECONDITION" == code_of(lambda: plugin.v1_encrypt(DEK))
    assert DEK == plugin.v1_decrypt(cipher)


def test_10_sentence_when_the_token_is_gone(plugin):
    """Without the token healthz has an error message soon, and it tells no secret."""
    began = time.monotonic()
    take_token(plugin)
    sentence = wait_failed(plugin)
    show("error message", [time.monotonic() - began])

    assert re.fullmatch(r"[a-zA-Z0-9 ,;.#-]{20,200}", sentence)
    assert PIN not in sentence


def test_11_key_id_in_every_answer(plugin, hsm):
    """Every Status has the same key_id: before, in and after an outage and restart."""
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
    failed = len(plugin.events("token worker cannot start"))
    plugin.start()
    while len(plugin.events("token worker cannot start")) == failed:
        assert asked()
    hsm.put_back()
    wait_for(lambda: asked("ok"))

    (key_id,) = key_ids
    assert 1 <= len(key_id.encode()) <= 1024
    assert len(sentences) > 1


async def test_12_status_in_milliseconds(served):
    """Status takes under 10 ms; half of them must in a hundred times that."""
    async with connected(served) as (client,):
        took = await timed(200, client.status)
    show("Status", took)

    assert quantile(took, 0.5) < patient(1)


async def test_13_sustained_status_beside_decrypt(served):
    """100 Status per second hardly slow down a Decrypt."""
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
    """Status answers at once while every call on the token hangs.

    In `fallback` and `software` a local KEK wraps meanwhile.
    """
    held = served.status().key_id
    cold = [shaped(Kind.DEK_BY_TOKEN, held) for _ in range(2 * SESSIONS)]
    locally = wrapping_of(served) != "token"
    with unharmed(served):
        async with connected(served, 2) as (one, other):
            with stopped(workers_of(served)):
                calls = [
                    asyncio.create_task(said(one.decrypt(each, held, HANG_SECONDS)))
                    for each in cold
                ]
                await all_sessions_busy(served)
                took = await timed(200, other.status)
                sealed = await said(other.encrypt(seconds=TIMEOUT if locally else 0.5))
                ended = {told.code for told in await asyncio.gather(*calls)}
        wait_for(lambda: code_of(lambda: served.v1_encrypt(DEK)) == "OK")
    show("Status", took)

    # One that waited for the token would take as long as the token hangs.
    assert quantile(took, 0.99) < HANG_SECONDS / 2
    assert ended <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
    assert locally is (sealed.code == "OK")
