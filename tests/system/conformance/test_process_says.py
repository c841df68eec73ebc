"""Conformance, "Process and socket": items 52 to 54, what it says and to how many."""

from __future__ import annotations

import asyncio
import os

import pytest

from hsm_kms.log import key_id_hash
from tests.harness.plugin import code_of
from tests.harness.processes import command_lines
from tests.harness.softhsm import PIN
from tests.harness.spelled import found
from tests.harness.wait import wait_for
from tests.system.conformance.clients import (
    DEK,
    SENTENCES,
    all_said,
    connected,
    shaped_local,
    take_token,
    workers_of,
)
from tests.system.conformance.inside import health
from tests.system.conformance.replica import Replica
from tests.system.conformance.tokens import import_kek
from tests.system.conformance.wrappings import each_wrapping


def pages(plugin) -> list[str]:
    """Return the metrics and /status as they are now."""
    return [plugin.page(path)[1] for path in ("/metrics", "/status")]


def traffic(plugin, dek: bytes) -> str:
    """Make every kind of request, valid and invalid; return the key_id."""
    sealed = plugin.encrypt(dek, uid="uid-of-encrypt")
    plugin.decrypt(sealed.ciphertext, sealed.key_id, uid="uid-of-decrypt")
    plugin.v1_decrypt(plugin.v1_encrypt(dek))
    code_of(lambda: plugin.decrypt(dek, sealed.key_id))
    code_of(lambda: plugin.decrypt(sealed.ciphertext[:-1], sealed.key_id))
    code_of(lambda: plugin.encrypt(dek * 100))
    code_of(lambda: plugin.v1_encrypt(dek, version="v9"))
    return sealed.key_id


@pytest.mark.parametrize("mixed", ["spawn"], indirect=True)
def test_52_no_secret_in_log_or_process(mixed):
    """Log, arguments, environment, metrics and /status have neither PIN nor DEK."""
    dek = os.urandom(32)
    pids = {mixed.process.pid, *workers_of(mixed)}
    traffic(mixed, dek)
    seen = [command_lines(pid) for pid in pids] + pages(mixed)
    take_token(mixed)
    wait_for(lambda: health(mixed) != "ok")
    code_of(lambda: mixed.encrypt(dek))
    code_of(lambda: mixed.v1_encrypt(dek))
    seen += pages(mixed)
    mixed.stop()
    seen.append(mixed.log())

    assert all(seen)
    secrets = (PIN.encode(), dek, dek[:16], dek[16:])
    assert [set()] * len(seen) == [found(secrets, text) for text in seen]


def test_52_no_local_kek_in_the_log(make_plugin, token_template, directory):
    """Log, metrics and /status have neither KEK nor local KEK, decrypted or not."""
    kek, replica = bytes(range(32)), Replica(bytes(range(32)))
    plugin = make_plugin(import_kek(token_template.copy(directory / "imported"), kek))
    plugin.start().wait_healthz("ok")
    local = replica.local()
    plugin.v1_decrypt(replica.by_local(local, DEK))
    code_of(lambda: plugin.v1_decrypt(local.header + bytes(61)))
    code_of(lambda: plugin.v1_decrypt(replica.by_token(replica.material)[:-1]))
    seen = pages(plugin)
    plugin.stop()
    log = plugin.log()

    assert 3 == log.count("v1.Decrypt")
    secrets = (replica.material, kek)
    assert [set()] * 3 == [found(secrets, text) for text in (*seen, log)]


def test_52_every_request_in_the_log(mixed):
    """The debug log has uid, method, code, path and duration of every request."""
    key_id = traffic(mixed, DEK)
    mixed.stop()
    events = {event["uid"]: event for event in mixed.events("request")}

    for uid, method in (
        ("uid-of-encrypt", "v2.Encrypt"),
        ("uid-of-decrypt", "v2.Decrypt"),
    ):
        event = events[uid]
        assert (method, "OK", key_id_hash(key_id), "local") == (
            event["method"],
            event["code"],
            event["key_id_hash"],
            event["path"],
        )
        assert event["duration_seconds"] > 0


async def test_53_fixed_sentences(mixed):
    """In an outage, too, a client receives only error messages of the table."""
    async with connected(mixed) as (client,):
        sealed = await client.encrypt()

        async def ask():
            return await all_said(
                [
                    client.encrypt(b""),
                    client.encrypt(b"x" * 1025),
                    client.encrypt(),
                    client.decrypt(sealed.ciphertext, sealed.key_id),
                    client.decrypt(sealed.ciphertext, "\0"),
                    client.decrypt(shaped_local(sealed.key_id), sealed.key_id),
                    client.decrypt(b"\xff" * 91, sealed.key_id),
                    client.raw_decrypt(b"\xff\xff\xff"),
                    client.v1_decrypt(b"x"),
                ]
            )

        told = await ask()
        take_token(mixed)
        rounds = 0
        while rounds < 20 or "UNAVAILABLE" not in {each.code for each in told}:
            told += await ask()
            rounds += 1
            await asyncio.sleep(0.05)

    assert {"OK", "INVALID_ARGUMENT", "UNAVAILABLE"} <= {each.code for each in told}
    assert {each.sentence for each in told} <= {"", *SENTENCES}


@each_wrapping
async def test_54_two_hundred_at_once(served):
    """200 Encrypts, Decrypts and Statuses at once all succeed."""
    async with connected(served, 2) as (one, other):
        sealed = await one.encrypt()
        told = await all_said(
            [
                *(one.encrypt() for _ in range(200)),
                *(other.decrypt(sealed.ciphertext, sealed.key_id) for _ in range(200)),
                *(other.status() for _ in range(200)),
            ],
            most=600,
        )

    assert {("OK", ""): 600} == told
