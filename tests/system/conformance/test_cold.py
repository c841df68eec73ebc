"""Conformance, "Decrypt", items 40 to 42: what costs the token a call, and what none.

The records are another node's, and so cold here: the first of them needs the token.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

import pytest

from hsm_kms.api.codes import INTERNAL
from hsm_kms.errors import TokenTimeoutError
from hsm_kms.wrapping.record import Kind
from hsm_kms.wrapping.single_flight import SingleFlight
from tests.harness.plugin import Plugin, code_of
from tests.harness.shim.driver import Shim
from tests.harness.wait import wait_for
from tests.system.conformance.clients import (
    DEK,
    NOT_AUTHENTIC,
    SENTENCES,
    all_said,
    connected,
    quantile,
    said,
    shaped,
    shaped_local,
    show,
    stopped,
    unharmed,
    workers_of,
)
from tests.system.conformance.cold import KEK, SLOW, Cold
from tests.system.conformance.inside import restart, start_well, token_calls
from tests.system.conformance.tokens import import_kek
from tests.system.conformance.wrappings import apis, each_wrapping, wrapping_of

AT_ONCE = 200
DISTINCT = 10_000
FORGED = 2_000
CLIENTS = 4
OUR_SENTENCES = {INTERNAL.sentence, *SENTENCES}
SESSIONS = 8  # of two workers


@pytest.fixture(scope="module")
def neighbour(session_directory, token_template, pin_file):
    """The server, shared: each test brings records of its own."""
    hsm = import_kek(token_template.copy(session_directory / "cold"), KEK)
    shim = Shim(hsm.directory)
    directory = hsm.directory / "p"
    directory.mkdir(mode=0o700)
    plugin = Plugin(
        *(directory, hsm, pin_file),
        apis=apis("software"),
        log={"level": "info"},
        token={"module": str(shim.module), "env": hsm.env | shim.env},
        keys={"discover": "1h"},
        health={"interval": "1h"},
    )
    workers_of(start_well(plugin))
    yield Cold(plugin, shim)
    plugin.close()


@pytest.fixture
def cold(neighbour):
    """The same, as fast as it is, and quiet."""
    neighbour.wait_quiet()
    yield neighbour
    neighbour.fast()


# What many ask for at once: a DEK and its record, each.


def one_record(replica):
    """The same record of the token's, again and again."""
    return [(DEK, replica.by_token(DEK))] * AT_ONCE


def one_local(replica):
    """The same record of a local KEK's, again and again."""
    return [(DEK, replica.by_local(replica.local(), DEK))] * AT_ONCE


def one_local_kek(replica):
    """As many DEKs under one local KEK."""
    kek, deks = replica.local(), [os.urandom(32) for _ in range(AT_ONCE)]
    return [(dek, replica.by_local(kek, dek)) for dek in deks]


each_flight = pytest.mark.parametrize("asked", [one_record, one_local, one_local_kek])


@each_flight
async def test_40_two_hundred_at_once(cold, asked):
    """Two hundred, of both APIs, are opened within 3 s by one call of a slow token.

    A DEK by the token is not kept: who comes after the call asks once more.
    """
    key_id = cold.replica.key_id
    deks, records = zip(*asked(cold.replica), strict=True)
    cold.slow()
    before = cold.calls()
    async with connected(cold.plugin, 4) as clients:
        began = time.perf_counter()
        opened = await asyncio.gather(
            *(
                clients[at % 4].decrypt(record, key_id)
                if at % 2
                else clients[at % 4].v1_decrypt(record)
                for at, record in enumerate(records)
            )
        )
        took = time.perf_counter() - began
    show(f"two hundred at once, {asked.__name__}", [took])

    assert [*deks] == opened
    assert 1 <= cold.calls() - before <= 1 + (asked is one_record) * took // SLOW
    assert took < 3


@each_flight
async def test_40_those_who_leave(cold, asked):
    """Who is cancelled or runs out of time takes nobody with him, the first neither."""
    key_id = cold.replica.key_id
    made = asked(cold.replica)[:60]
    cold.slow(2 * SLOW)
    before = cold.calls()
    async with connected(cold.plugin, 2) as (one, other):
        leaving, late, staying = (
            [
                asyncio.create_task(client.decrypt(record, key_id, seconds))
                for _, record in made[turn::3]
            ]
            for turn, (client, seconds) in enumerate(((one, 9), (one, 0.2), (other, 9)))
        )
        await asyncio.sleep(0.1)
        for call in leaving:
            call.cancel()
        told = Counter(each.code for each in [await said(call) for call in late])
        opened = await asyncio.gather(*staying)

    assert {"DEADLINE_EXCEEDED", "UNAVAILABLE"} >= set(told)
    assert [dek for dek, _ in made[2::3]] == opened
    assert all(call.cancelled() for call in leaving)
    assert 1 == cold.calls() - before


@each_flight
async def test_40_after_all_have_left(cold, asked):
    """A call that nobody waits for any more is no obstacle to the next one."""
    key_id = cold.replica.key_id
    made = asked(cold.replica)[:10]
    cold.slow()
    async with connected(cold.plugin) as (client,):
        told = await all_said(client.decrypt(r, key_id, 0.1) for _, r in made)
        opened = [await client.decrypt(record, key_id) for _, record in made[:2]]

    assert "OK" not in {each.code for each in told}
    assert [dek for dek, _ in made[:2]] == opened


async def test_41_ten_thousand_after_a_restart(cold):
    """As the API server starts with v1: one call for all, no error, each at once."""
    kek, deks = cold.replica.local(), [os.urandom(32) for _ in range(DISTINCT)]
    ciphers = [cold.replica.by_local(kek, dek) for dek in deks]
    opened = [b""] * DISTINCT
    took: list[float] = []

    async def unseal(client, mine) -> None:
        for at in mine:
            began = time.perf_counter()
            opened[at] = await client.v1_decrypt(ciphers[at])
            took.append(time.perf_counter() - began)

    restart(cold.plugin)
    workers_of(cold.plugin)
    cold.wait_quiet()
    before = cold.calls()
    async with connected(cold.plugin, CLIENTS) as clients:
        rows = (range(at, DISTINCT, CLIENTS) for at in range(CLIENTS))
        await asyncio.gather(*map(unseal, clients, rows))
    show("v1 Decrypt after a restart", took)

    assert deks == opened
    assert 1 == cold.calls() - before
    assert quantile(took, 0.99) < 0.1


@each_wrapping
async def test_42_too_late_for_a_session(served):
    """Nothing is asked of the token for those whose time is over before their turn."""
    held = served.status().key_id
    busy = [shaped(Kind.DEK_BY_TOKEN, held) for _ in range(SESSIONS)]
    waiting = [shaped(Kind.DEK_BY_TOKEN, held) for _ in range(50)]
    waiting += [shaped_local(held) for _ in range(50)]

    def calls() -> tuple[int, int]:
        return token_calls(served, "encrypt"), token_calls(served, "decrypt")

    with unharmed(served):
        async with connected(served, 2) as (one, other):
            with stopped(workers_of(served)):
                first = [
                    asyncio.create_task(said(one.decrypt(each, held, 0.9)))
                    for each in busy
                ]
                await asyncio.sleep(0.1)
                before = calls()
                late = await all_said(
                    [
                        *(other.encrypt(seconds=0.5) for _ in range(50)),
                        *(other.decrypt(each, held, 0.5) for each in waiting),
                    ],
                    most=150,
                )
                after = calls()
            await asyncio.gather(*first)
        await asyncio.sleep(0.1)
        wait_for(lambda: code_of(lambda: served.encrypt(DEK)) == "OK")

    # When the client's time is over grpc may be first to say so, in words of its own.
    ours = {told.code for told in late if told.sentence in OUR_SENTENCES}
    assert before == after
    assert {"UNAVAILABLE", "RESOURCE_EXHAUSTED"} >= ours
    assert (wrapping_of(served) != "token") is (late["OK", ""] > 25)


@pytest.mark.parametrize("served", ["fallback"], indirect=True)
async def test_42_no_time_for_the_token(served):
    """A client of less patience than a token call may need is spared one."""
    before = token_calls(served, "encrypt")
    async with connected(served) as (client,):
        told = await all_said((client.encrypt(seconds=0.09) for _ in range(20)), most=2)

    assert {"OK", "DEADLINE_EXCEEDED"} >= {each.code for each in told}
    assert told["OK", ""]
    assert before == token_calls(served, "encrypt")


async def test_42_the_time_is_over_when_it_comes(rig):
    """A request that comes too late is not begun, however many sessions are idle."""
    rig.add(2)
    now = asyncio.get_running_loop().time()
    begun: list[str] = []
    call = rig.call(deadline=now, before=lambda: begun.append("call"))
    with pytest.raises(TokenTimeoutError):
        await call
    flights: SingleFlight[bytes] = SingleFlight()
    with pytest.raises(TokenTimeoutError):
        await flights.join(b"record", lambda: begun.append("flight"), deadline=now)
    await rig.settle()

    assert [] == begun
    assert [] == rig.busy()
    assert [] == rig.alarm.faults


async def test_39_forged_headers_by_the_thousand(cold):
    """Each forged local KEK is tried once; none takes the place of a good one."""
    replica = cold.replica
    good = [replica.by_local(replica.local(), DEK) for _ in range(50)]
    good.append(cold.plugin.v1_encrypt(DEK))
    forged = [shaped_local(replica.key_id) for _ in range(FORGED)]
    in_good = [record[:-48] + os.urandom(48) for record in good for _ in range(4)]
    costs = []
    with unharmed(cold.plugin):
        async with connected(cold.plugin, 2) as (honest, hostile):
            for client, records, wanted in (
                (honest, good, ("OK", "")),
                (hostile, forged, NOT_AUTHENTIC),
                (hostile, forged[-200:], NOT_AUTHENTIC),
                (hostile, in_good, NOT_AUTHENTIC),
                (honest, good, ("OK", "")),
            ):
                # Not C_Decrypt: where a token's word for what is not authentic may
                # mean anything, a good record is tried after it.
                before = token_calls(cold.plugin, "decrypt")
                told = await all_said(
                    client.decrypt(record, replica.key_id) for record in records
                )
                assert {wanted: len(records)} == told
                costs.append(token_calls(cold.plugin, "decrypt") - before)

    assert [50, FORGED, 0, 0, 0] == costs


async def test_software_costs_nothing(cold):
    """Encrypt and Decrypt by a local KEK make not one call into the module."""
    before = cold.all_calls()
    async with connected(cold.plugin) as (client,):
        for _ in range(10):
            sealed = await client.encrypt()
            assert DEK == await client.decrypt(sealed.ciphertext, sealed.key_id)
            assert DEK == await client.v1_decrypt(await client.v1_encrypt(DEK))

    assert before == cold.all_calls()
