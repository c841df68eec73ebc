"""Requests given up end no worker, and no client gets the answer of another."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

from tests.system.conformance.clients import connected, in_turn, said, unharmed
from tests.system.conformance.wrappings import each_wrapping, wrapping_of

GIVEN_UP = {"token": 10_000, "fallback": 1_000, "software": 1_000}
IMPATIENT = 50  # clients at once
HONEST = 8
MAY_END = {"OK", "DEADLINE_EXCEEDED", "CANCELLED", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}


@each_wrapping
async def test_given_up_after_a_millisecond(served):
    """Thousands of calls given up under load harm no worker and no other client."""
    given_up = GIVEN_UP[wrapping_of(served)]
    ended: Counter[str] = Counter()
    rounds = 0

    async def give_up(client, sealed) -> None:
        call = client.decrypt(sealed.ciphertext, sealed.key_id, seconds=0.001)
        ended[(await said(call)).code] += 1

    async def honest(client, storm) -> None:
        nonlocal rounds
        while not storm.done():
            dek = os.urandom(32)
            sealed = await client.encrypt(dek)
            assert dek == await client.decrypt(sealed.ciphertext, sealed.key_id)
            assert dek == await client.v1_decrypt(await client.v1_encrypt(dek))
            rounds += 1

    with unharmed(served):
        async with connected(served, 2 + HONEST) as (one, other, *rest):
            foreign = await one.encrypt(b"of those who give up")
            storm = asyncio.gather(
                *(
                    in_turn(
                        given_up // IMPATIENT,
                        lambda at=at: give_up((one, other)[at % 2], foreign),
                    )
                    for at in range(IMPATIENT)
                )
            )
            await asyncio.gather(*(honest(client, storm) for client in rest))
            await storm

    assert given_up == ended.total()
    assert set(ended) <= MAY_END
    assert ended.total() - ended["OK"] > given_up // 2
    assert rounds >= HONEST


@each_wrapping
async def test_cancelled_in_the_middle(served):
    """Calls cancelled at any moment leave their sessions usable."""
    with unharmed(served):
        async with connected(served, 2) as (one, other):
            for pause in range(100):
                dek = os.urandom(32)
                calls = [asyncio.create_task(one.encrypt(b"x" * 32)) for _ in range(16)]
                await asyncio.sleep(pause / 50_000)
                for call in calls:
                    call.cancel()
                sealed = await other.encrypt(dek)
                assert dek == await other.decrypt(sealed.ciphertext, sealed.key_id)
                await asyncio.gather(*calls, return_exceptions=True)
