"""Conformance, "Decrypt", items 40 to 42: which requests cost the token a call.

The records are another node's: the first by each local KEK needs the token.
"""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from hsm_kms.api.codes import INTERNAL
from hsm_kms.errors import TokenTimeoutError
from hsm_kms.wrapping.record import Kind
from hsm_kms.wrapping.single_flight import REMEMBER_SECONDS, SingleFlight
from tests.harness.examples import examples
from tests.harness.plugin import beside, code_of
from tests.harness.shim.driver import Shim
from tests.harness.wait import patient, until, wait_for
from tests.system.conformance.clients import (
    DEK,
    NOT_AUTHENTIC,
    SENTENCES,
    TIMEOUT,
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
from tests.system.conformance.inside import (
    PATIENT,
    all_sessions_busy,
    restart,
    start_well,
    token_calls,
)
from tests.system.conformance.tokens import import_kek
from tests.system.conformance.wrappings import apis, each_wrapping, wrapping_of

AT_ONCE = 200
DISTINCT = examples(1000, 10_000)
FORGED = 2_000
CLIENTS = 4
OUR_SENTENCES = {INTERNAL.sentence, *SENTENCES}
SESSIONS = 8  # of two workers


@pytest.fixture(scope="session")
def neighbour(session_directory, token_template, pin_file):
    """A server and another node, shared: each test makes records of its own."""
    hsm = import_kek(token_template.copy(session_directory / "cold"), KEK)
    shim = Shim(hsm.directory)
    plugin = beside(
        *(hsm, pin_file),
        apis=apis("software"),
        log={"level": "info"},
        token=PATIENT | {"module": str(shim.module), "env": hsm.env | shim.env},
        keys={"discover": "1h"},
        health={"interval": "1h"},
    )
    workers_of(start_well(plugin))
    yield Cold(plugin, shim)
    plugin.close()


@pytest.fixture
def cold(neighbour):
    """Return the shared server and node, and undo `slow` after the test."""
    yield neighbour
    neighbour.fast()


# DEKs and their records, for many requests at once.


def one_record(replica):
    """Repeat one record by the token."""
    return [(DEK, replica.by_token(DEK))] * AT_ONCE


def one_local(replica):
    """Repeat one record by a local KEK."""
    return [(DEK, replica.by_local(replica.local(), DEK))] * AT_ONCE


def one_local_kek(replica):
    """Make as many different records by one local KEK."""
    kek, deks = replica.local(), [os.urandom(32) for _ in range(AT_ONCE)]
    return [(dek, replica.by_local(kek, dek)) for dek in deks]


each_flight = pytest.mark.parametrize("asked", [one_record, one_local, one_local_kek])


@each_flight
async def test_40_two_hundred_at_once(cold, asked):
    """200 Decrypts at once, of both APIs, cost a slow token one call.

    A DEK by the token is not kept: a request that comes after that call makes another.
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


@each_flight
async def test_40_those_who_leave(cold, asked):
    """A client that cancels or times out, the first too, ends no other's request."""
    key_id = cold.replica.key_id
    made = asked(cold.replica)[:60]
    before, joined = cold.calls(), cold.joined()
    async with connected(cold.plugin, 2) as (one, other):
        with cold.hanging():

            def ask(client, turn, seconds=TIMEOUT):
                return [
                    asyncio.create_task(client.decrypt(record, key_id, seconds))
                    for _, record in made[turn::3]
                ]

            # All others join the call of the first one before anybody leaves.
            leaving = ask(one, 0)
            await until(lambda: cold.joined() == joined + len(leaving) - 1)
            staying = ask(other, 1)
            wanted = joined + len(leaving + staying) - 1
            await until(lambda: cold.joined() == wanted)
            late = ask(one, 2, 0.2)
            told = {(await said(call)).code for call in late}
            for call in leaving:
                call.cancel()
        opened = await asyncio.gather(*staying)

    assert {"DEADLINE_EXCEEDED", "UNAVAILABLE"} >= told
    assert [dek for dek, _ in made[1::3]] == opened
    assert all(call.cancelled() for call in leaving)
    assert 1 == cold.calls() - before


@each_flight
async def test_40_after_all_have_left(cold, asked):
    """A shared call that every client gave up does not block the next request."""
    key_id = cold.replica.key_id
    made = asked(cold.replica)[:10]
    async with connected(cold.plugin) as (client,):
        with cold.hanging():
            told = await all_said(client.decrypt(r, key_id, 0.1) for _, r in made)
        opened = [await client.decrypt(record, key_id) for _, record in made[:2]]

    assert "OK" not in {each.code for each in told}
    assert [dek for dek, _ in made[:2]] == opened


async def test_41_thousands_after_a_restart(cold):
    """Thousands of v1 Decrypts, as API servers start with, cost the token one call."""
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
    before = cold.calls()
    async with connected(cold.plugin, CLIENTS) as clients:
        rows = (range(at, DISTINCT, CLIENTS) for at in range(CLIENTS))
        await asyncio.gather(*map(unseal, clients, rows))
    show("v1 Decrypt after a restart", took)

    assert deks == opened
    assert 1 == cold.calls() - before
    assert quantile(took, 0.5) < patient(1)


@each_wrapping
async def test_42_too_late_for_a_session(served):
    """A request whose deadline passes before a session is free never reaches the token.

    In `fallback` and `software` a local KEK answers every Encrypt meanwhile.
    """
    held = served.status().key_id
    busy = [shaped(Kind.DEK_BY_TOKEN, held) for _ in range(SESSIONS)]
    waiting = [shaped(Kind.DEK_BY_TOKEN, held) for _ in range(50)]
    waiting += [shaped_local(held) for _ in range(50)]
    locally = wrapping_of(served) != "token"
    patience = TIMEOUT if locally else 0.5

    def calls() -> tuple[int, int]:
        return token_calls(served, "encrypt"), token_calls(served, "decrypt")

    with unharmed(served):
        async with connected(served, 2) as (one, other):
            with stopped(workers_of(served)):
                first = [
                    asyncio.create_task(said(one.decrypt(each, held))) for each in busy
                ]
                await all_sessions_busy(served)
                before = calls()
                late = await all_said(
                    [
                        *(other.encrypt(seconds=patience) for _ in range(50)),
                        *(other.decrypt(each, held, 0.5) for each in waiting),
                    ],
                    most=150,
                )
                after = calls()
            await asyncio.gather(*first)
        wait_for(lambda: code_of(lambda: served.encrypt(DEK)) == "OK")

    # When a deadline passes, the client's grpc may be first to say so, in its words.
    ours = {told.code for told in late if told.sentence in OUR_SENTENCES}
    assert before == after
    assert {"UNAVAILABLE", "RESOURCE_EXHAUSTED"} >= ours
    assert 50 * locally == late["OK", ""]


@pytest.mark.parametrize("served", ["fallback"], indirect=True)
async def test_42_no_time_for_the_token(served):
    """With too short a deadline for a token call, `fallback` makes none.

    A local KEK answers at once, which is in time unless the machine is busy.
    """
    before = token_calls(served, "encrypt")
    codes = set()
    async with connected(served) as (client,):
        async with asyncio.timeout(patient()):
            while "OK" not in codes:
                codes.add((await said(client.encrypt(seconds=0.09))).code)

    assert {"OK", "DEADLINE_EXCEEDED"} >= codes
    assert before == token_calls(served, "encrypt")


async def test_42_the_time_is_over_when_it_comes(rig):
    """A request whose deadline has passed is not begun, even if sessions are idle."""
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
    """The token tries each forged local KEK once; none evicts a good one."""

    async def cost(client, records, wanted):
        """Decrypt the records; return how many calls the token was sent.

        Not C_Decrypt: where a token's word for what is not authentic may mean anything,
        a good record is tried after it.
        """
        before = token_calls(cold.plugin, "decrypt")
        told = await all_said(
            client.decrypt(record, replica.key_id) for record in records
        )
        assert {wanted: len(records)} == told
        return token_calls(cold.plugin, "decrypt") - before

    async def cost_again(client):
        """Return what forged records cost the second time.

        They are fewer at each try, until both times are within `REMEMBER_SECONDS`.
        """
        number = 400
        while True:
            number = max(number // 2, 1)
            records = [shaped_local(replica.key_id) for _ in range(number)]
            began = time.monotonic()
            first = await cost(client, records, NOT_AUTHENTIC)
            again = await cost(client, records, NOT_AUTHENTIC)
            assert number == first
            if time.monotonic() - began < REMEMBER_SECONDS:
                return again

    replica = cold.replica
    good = [replica.by_local(replica.local(), DEK) for _ in range(50)]
    good.append(cold.plugin.v1_encrypt(DEK))
    forged = [shaped_local(replica.key_id) for _ in range(FORGED)]
    in_good = [record[:-48] + os.urandom(48) for record in good for _ in range(4)]
    with unharmed(cold.plugin):
        async with connected(cold.plugin, 2) as (honest, hostile):
            costs = [
                await cost(honest, good, ("OK", "")),
                await cost(hostile, forged, NOT_AUTHENTIC),
            ]
            async with asyncio.timeout(patient()):
                costs.append(await cost_again(hostile))
            costs += [
                await cost(hostile, in_good, NOT_AUTHENTIC),
                await cost(honest, good, ("OK", "")),
            ]

    assert [50, FORGED, 0, 0, 0] == costs


async def test_software_costs_nothing(cold):
    """Encrypt and Decrypt by a local KEK make no call into the module.

    A canary may make some: then the requests are made, and the calls counted, again.
    """

    async def requests(client) -> None:
        for _ in range(10):
            sealed = await client.encrypt()
            assert DEK == await client.decrypt(sealed.ciphertext, sealed.key_id)
            assert DEK == await client.v1_decrypt(await client.v1_encrypt(DEK))

    async with connected(cold.plugin) as (client,):
        async with asyncio.timeout(patient()):
            calls = None
            while calls != cold.all_calls():
                calls = cold.all_calls()
                await requests(client)
