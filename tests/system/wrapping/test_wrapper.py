"""Wrapping and unwrapping by a real token or by a local KEK."""

from __future__ import annotations

import asyncio
import os

import pytest

from hsm_kms.errors import (
    CiphertextError,
    KeyLostError,
    LocalRefusedError,
    NonceBudgetError,
    PoolTimeoutError,
    RequestError,
    TokenError,
    TokenTimeoutError,
    UnavailableError,
    UnknownKeyIdError,
)
from hsm_kms.wrapping.record import Header, Kind, Record
from hsm_kms.wrapping.wrapper import Path, Sealed
from tests.harness.processes import children
from tests.harness.wait import patient
from tests.system.conformance.clients import stopped
from tests.system.wrapping.wrapping_rig import (
    DEK,
    DOWN,
    NESTED,
    SELDOM,
    kind,
    nested,
    nodes,
    running,
)
from tests.unit.keys.key_samples import A

TOKEN, LOCAL, COLD = Path.TOKEN, Path.LOCAL, Path.LOCAL_UNCACHED


@pytest.fixture
async def make_node(make_plugin, hsm, shim):
    """Make nodes on one token."""
    async with nodes(make_plugin, hsm, shim) as make:
        yield make


def changed(record, **changes):
    """A record with another header, and all else as it is."""
    header = record.header
    given = {
        "kind": header.kind,
        "algorithm": header.algorithm,
        "key_id": header.key_id,
        "nested": header.nested,
    }
    return Record(
        header=Header(**(given | changes)), iv=record.iv, ciphertext=record.ciphertext
    )


def forged(sealed):
    """A record like this one, whose local KEK no token has wrapped."""
    record = Record.decode(sealed.ciphertext)
    inner = Record.decode(record.header.nested, kinds=NESTED)
    made_up = Record(
        header=inner.header, iv=inner.iv, ciphertext=os.urandom(len(inner.ciphertext))
    )
    found = changed(record, nested=made_up.encode())
    return Sealed(found.encode(), sealed.key_id, LOCAL)


async def outcomes(*calls):
    """Classes of errors, and what was opened."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    return [type(one) if isinstance(one, Exception) else one for one in found]


def paths(opened):
    return {one.path for one in opened}


# Wrapping


@pytest.mark.parametrize(
    ("wrapping", "path", "number"),
    [("token", TOKEN, 1), ("fallback", TOKEN, 1), ("software", LOCAL, 2)],
)
async def test_while_all_is_well(make_node, wrapping, path, number):
    """Each wrapping mode makes its kind of record, which both APIs decrypt."""
    node = await make_node(wrapping)
    key_id = node.announce().key_id
    sealed = {api: await node.wrap(api=api) for api in ("v1", "v2")}
    await node.wrapping("token", "software")

    for one in sealed.values():
        assert (key_id, path, number) == (one.key_id, one.path, kind(one))
        for api in sealed:
            opened = await node.unwrap(one, api=api)
            assert (DEK, path) == (opened.plaintext, opened.path)


FAULTS = {
    "device error": ("C_EncryptInit rv=0x30", TokenError),
    "everything fails": (DOWN, TokenError),
    "no read-back": ("C_Decrypt rv=0x40", TokenError),
    "hangs": ("C_Encrypt sleep=5000", TokenTimeoutError),
    "busy": ("C_Encrypt sleep=5000", PoolTimeoutError),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_fallback(make_node, shim, fault):
    """In `fallback` a local KEK wraps where `token` fails."""
    line, error = FAULTS[fault]
    token = {"call_timeout": "1s", "session_wait": "500ms", "sessions_per_worker": 1}
    node = await make_node("fallback", token=token, **SELDOM)
    await node.quiet(shim)
    await node.wrapping("token", "fallback")
    shim.set(line)
    busy = [asyncio.create_task(node.wrap())] if fault == "busy" else []
    await asyncio.sleep(0)

    (refused,) = await outcomes(node.wrap(seconds=10))
    await node.wrapping("fallback")
    sealed = await node.wrap()
    await outcomes(*busy)
    shim.clear()

    assert issubclass(refused, error)
    assert issubclass(refused, UnavailableError)
    assert (LOCAL, Kind.DEK_BY_LOCAL_KEK) == (sealed.path, kind(sealed))
    assert sealed.key_id == node.announce().key_id
    assert DEK == (await node.unwrap(sealed)).plaintext


async def test_fallback_is_in_time(make_node, shim, monkeypatch):
    """In `fallback` a token that hangs leaves time for the answer by a local KEK."""
    monkeypatch.setattr("hsm_kms.wrapping.wrapper.ANSWER_SECONDS", 20)
    node = await make_node("fallback", **SELDOM)
    await node.quiet(shim)
    shim.set("C_Encrypt hang")
    loop = asyncio.get_running_loop()
    began = loop.time()
    sealed = await node.wrap(seconds=21)  # of which the token has one

    assert LOCAL == sealed.path
    assert loop.time() < began + 10


async def test_fallback_does_not_stand_in_for_a_key(make_node, hsm):
    """After the key is deleted on the token nothing wraps or unwraps in its place."""
    node = await make_node("software")
    sealed = await node.wrap()
    await node.wrapping("fallback")
    hsm.pkcs11_tool("--delete-object", "--type", "secrkey", "--label", "k8s-kek")
    state = await node.state("failed")

    assert sealed.key_id == state.key_id
    assert [UnknownKeyIdError] == await outcomes(node.unwrap(sealed))
    for wrapping in ("fallback", "software", "token"):
        if wrapping != "fallback":
            await node.wrapping(wrapping)
        assert [KeyLostError] * 2 == await outcomes(node.wrap(), node.wrap(api="v1")), (
            wrapping
        )


@pytest.mark.parametrize("mode", ["", "gcm_iv=token", "gcm_iv=append"])
async def test_budget_is_spent(make_node, shim, mode):
    """`fallback` does not replace a key without nonces left; `software` goes on.

    It does not matter whether the caller or the token makes the IVs, or appends them.
    """
    shim.set(mode)
    node = await make_node("fallback", limits={"stop_at": 40, "warn_at": 20})
    for _ in range(40):
        if not node.lasting.budget.is_spent(node.announce().key_id):
            await node.wrap()

    assert [NonceBudgetError] == await outcomes(node.wrap())
    assert "rotate" in (await node.state("failed")).healthz
    await node.wrapping("software")
    assert LOCAL == (await node.wrap()).path
    assert "ok" == (await node.state("ok")).healthz
    await node.wrapping("token")
    assert [NonceBudgetError] == await outcomes(node.wrap())


async def test_sizes(make_node):
    """Every wrapping mode refuses plaintexts that are empty or too long."""
    node = await make_node("token")
    for wrapping in ("fallback", "software"):
        await node.wrapping(wrapping)
        await node.well()
        for size in (0, 1025):
            assert [RequestError] == await outcomes(node.wrap(bytes(size)))
        for size in (1, 1024):
            sealed = await node.wrap(bytes(size))
            assert bytes(size) == (await node.unwrap(sealed)).plaintext


# Unwrapping


async def restarted(node):
    """Restart a node, which then has no local KEK in memory."""
    await node.close()
    return running(node.plugin)


async def test_one_call_for_a_local_kek(make_node, shim):
    """After a restart 200 Decrypts of one local KEK's records cost one call."""
    node = await make_node()
    deks = [b"%032d" % number for number in range(200)]
    sealed = [await node.wrap(dek) for dek in deks]

    async with await restarted(node) as again:
        await again.well()
        shim.set("C_Decrypt sleep=200")
        before = again.calls("decrypt")
        found = await asyncio.gather(*(again.unwrap(one) for one in sealed))
        after = again.calls("decrypt")
        shim.clear()
        warm = await again.unwrap(sealed[0], api="v1")

    assert deks == [one.plaintext for one in found]
    assert ({COLD}, LOCAL) == (paths(found), warm.path)
    assert 1 == after - before


async def test_one_call_for_what_is_the_same(make_node, shim):
    """200 identical Decrypts at once cost one call, a different one another."""
    node = await make_node("token")
    one, other = await node.wrap(), await node.wrap(b"other")
    shim.set("C_Decrypt sleep=200")
    before = node.calls("decrypt")
    found = await asyncio.gather(*many(node, one, 200))
    between = node.calls("decrypt")
    shim.clear()
    last = await node.unwrap(other)

    assert {DEK} == {each.plaintext for each in found}
    assert (1, 1) == (between - before, node.calls("decrypt") - between)
    assert b"other" == last.plaintext


def many(node, sealed, number, **how):
    return [node.unwrap(sealed, **how) for _ in range(number)]


@pytest.mark.parametrize(("wrapping", "path"), [("token", TOKEN), ("software", COLD)])
async def test_one_of_many_gives_up(make_node, wrapping, path):
    """A Decrypt that times out or is cancelled does not end the call it shares."""
    node = await make_node(wrapping)
    sealed = await node.wrap()
    async with await restarted(node) as again:
        await again.well()
        before = again.calls("decrypt")
        with stopped(children()):
            hasty = asyncio.create_task(again.unwrap(sealed, seconds=0.1))
            gone = asyncio.create_task(again.unwrap(sealed))
            others = asyncio.gather(*many(again, sealed, 5, seconds=patient()))
            (ended,) = await outcomes(hasty)
            gone.cancel()
        opened = await others
        after = again.calls("decrypt")

    assert TokenTimeoutError == ended
    assert gone.cancelled()
    assert [(DEK, path)] * 5 == [(one.plaintext, one.path) for one in opened]
    assert 1 == after - before


async def test_forged_headers_push_out_nothing(make_node):
    """A forged local KEK evicts no other, and costs the token one call."""
    node = await make_node(limits={"most": 2})
    sealed = await node.wrap()
    wrong = [forged(sealed) for _ in range(50)]
    before = node.calls("decrypt")
    first = await outcomes(*map(node.unwrap, wrong))
    between = node.calls("decrypt")
    second = await outcomes(*map(node.unwrap, wrong))
    after = node.calls("decrypt")

    assert [CiphertextError] * 50 == first == second
    assert (50, 0) == (between - before, after - between)
    assert 1 == len(node.lasting.opened)
    assert (DEK, LOCAL) == await plaintext_and_path(node, sealed)


async def plaintext_and_path(node, sealed, **how):
    opened = await node.unwrap(sealed, **how)
    return opened.plaintext, opened.path


async def test_forged_dek_in_a_good_header(make_node):
    """A forged DEK under a valid local KEK is refused, and harms no other."""
    node = await make_node()
    sealed = await node.wrap()
    wrong = Sealed(
        sealed.ciphertext[:-1] + bytes([sealed.ciphertext[-1] ^ 1]),
        sealed.key_id,
        LOCAL,
    )
    async with await restarted(node) as again:
        await again.well()
        before = again.calls("decrypt")
        first = await outcomes(*many(again, wrong, 3))
        found = await plaintext_and_path(again, sealed)
        second = await outcomes(again.unwrap(wrong))
        after = again.calls("decrypt")

    assert [CiphertextError] * 4 == first + second
    assert (DEK, LOCAL) == found
    assert 1 == after - before


@pytest.mark.parametrize("wrapping", ["token", "software"])
async def test_what_is_refused(make_node, wrapping):
    """Records of another key_id, kind or length are refused."""
    node = await make_node(wrapping)
    sealed = await node.wrap()
    data, key_id = sealed.ciphertext, sealed.key_id
    record = Record.decode(data)
    inner = nested(sealed) or changed(record, kind=Kind.LOCAL_KEK_BY_TOKEN).encode()
    canary = changed(Record.decode(inner, kinds=NESTED), kind=Kind.CANARY)
    pieces = [data[:size] for size in range(len(data))]
    refused = [*pieces, data + b"\0", canary.encode(), inner, inner + data]

    found = await outcomes(
        *(node.unwrap(Sealed(each, key_id, TOKEN)) for each in refused),
        *(node.unwrap(Sealed(data, each, TOKEN)) for each in (A, f"{key_id}.x", "")),
    )

    assert {CiphertextError} == set(found)
    assert DEK == (await node.unwrap(sealed)).plaintext


@pytest.mark.parametrize("wrapping", ["token", "software"])
async def test_key_that_is_not_held(make_node, wrapping):
    """A record under an unknown key is refused by its key_id."""
    node = await make_node(wrapping)
    record = Record.decode((await node.wrap()).ciphertext)
    changes = {"key_id": A}
    if inner := record.header.nested:
        of_another = changed(Record.decode(inner, kinds=NESTED), **changes)
        changes["nested"] = of_another.encode()
    strange = Sealed(changed(record, **changes).encode(), A, TOKEN)

    assert [UnknownKeyIdError] * 2 == await outcomes(
        node.unwrap(strange), node.unwrap(strange, api="v1")
    )


async def test_accept_local(make_node):
    """`accept_local: false` refuses records by local KEKs, even those in memory."""
    node = await make_node()
    local = await node.wrap()
    await node.wrapping("token")
    by_token = await node.wrap()
    refuses = {"accept_local": False}
    await node.reload(local_keys=refuses)

    for api in ("v1", "v2"):
        assert [LocalRefusedError] == await outcomes(node.unwrap(local, api=api))
        assert (DEK, TOKEN) == await plaintext_and_path(node, by_token, api=api)
    assert [LocalRefusedError] == await outcomes(node.unwrap(forged(local)))
    assert [CiphertextError] == await outcomes(
        node.unwrap(Sealed(local.ciphertext, A, LOCAL))
    )
    await node.reload(local_keys={"accept_local": True})
    assert (DEK, LOCAL) == await plaintext_and_path(node, local)


async def test_outage(make_node, shim):
    """In an outage only local KEKs in memory unwrap; Status says so once one fails."""
    node = await make_node()
    local = await node.wrap()
    not_open = forged(local)
    await node.wrapping("token", "software")
    by_token = await node.wrap()
    await node.wrapping("software")
    await node.well()
    shim.set(DOWN)
    spared = await node.state("degraded")

    assert "ok" == spared.healthz
    assert (DEK, LOCAL) == await plaintext_and_path(node, local)
    assert LOCAL == (await node.wrap()).path
    assert "ok" == node.look().healthz, "no request has failed"
    for error in await outcomes(node.unwrap(by_token), node.unwrap(not_open)):
        assert issubclass(error, UnavailableError)
    assert "writes continue with a local KEK" in node.look().healthz

    shim.clear()
    await node.state("ok")
    assert (DEK, TOKEN) == await plaintext_and_path(node, by_token)
    assert [CiphertextError] == await outcomes(node.unwrap(not_open))
