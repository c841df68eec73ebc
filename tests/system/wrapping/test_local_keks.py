"""Local KEKs on a real token: created, read back, replaced and retired."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from hsm_kms.clock import now
from hsm_kms.errors import KeyRetiredError, UnavailableError
from hsm_kms.wrapping.by_local_kek import MAX_USES, LocalKek
from hsm_kms.wrapping.record import Kind, Record
from hsm_kms.wrapping.wrapper import Path
from tests.harness.wait import patient
from tests.system.wrapping.wrapping_rig import (
    DEK,
    DOWN,
    NESTED,
    SELDOM,
    kind,
    nested,
    running,
)

if TYPE_CHECKING:
    from hsm_kms.wrapping.wrapper import Sealed
    from tests.system.wrapping.wrapping_rig import WrappingNode

NO_RNG = 0x121
NO_BIRTH = f"C_GenerateRandom rv={NO_RNG:#x}"  # nothing else asks for it
NOT_MADE = "no local KEK could be created"


@dataclass
class Load:
    """Encrypts without a pause; each must be answered at once, by a local KEK.

    Attributes:
        uses: How often each local KEK wrapped.
        records: The last record by each.
        key_ids: Each key_id that came, in this order.
    """

    node: WrappingNode
    api: str = "v2"
    uses: dict[bytes, int] = field(default_factory=dict)
    records: dict[bytes, Sealed] = field(default_factory=dict)
    key_ids: list[str] = field(default_factory=list)

    def once(self):
        """One Encrypt, which waits for nothing."""
        sealed = at_once(self.node.wrap(api=self.api))
        assert Path.LOCAL == sealed.path
        carried = nested(sealed)
        self.uses[carried] = self.uses.get(carried, 0) + 1
        self.records[carried] = sealed
        if sealed.key_id not in self.key_ids:
            self.key_ids.append(sealed.key_id)
        return sealed

    async def until(self, condition):
        """Go on until the condition is true."""
        async with asyncio.timeout(patient()):
            while not condition():
                for _ in range(3):
                    self.once()
                await asyncio.sleep(0)


def at_once(call):
    """Return the result of a coroutine, which must not wait for anything."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    call.close()
    raise AssertionError("it waits")


async def refused(call):
    """Return the class of a call's error, or None if it succeeds."""
    try:
        await call
    except Exception as error:  # noqa: BLE001 - any class may come
        return type(error)
    return None


async def opens_after_restart(node, *records):
    """Return True if a new process decrypts each of these records."""
    await node.close()
    async with running(node.plugin) as again:
        await again.well()
        return [(await again.unwrap(one)).plaintext for one in records] == [DEK] * len(
            records
        )


def warnings(logs, event=NOT_MADE):
    return [one["error"] for one in logs if one["event"] == event]


# Birth


async def test_birth(make_node, logs):
    """One local KEK for both APIs is created and read back before the first request."""
    node = await make_node(**SELDOM)
    key_id = node.announce().key_id
    both = [await node.wrap(api=api) for api in ("v1", "v2")]

    assert [(key_id, Path.LOCAL)] * 2 == [(one.key_id, one.path) for one in both]
    assert nested(both[0]) == nested(both[1])
    assert (1, 1, 1) == tuple(map(node.calls, ("generaterandom", "encrypt", "decrypt")))
    assert (1, 0) == (node.created(), node.created("failed"))
    assert await opens_after_restart(node, *both)


async def test_corrupt_result(make_node, shim, logs):
    """A local KEK that the token cannot read back is not used; another is created."""
    node = await make_node("token", **SELDOM)
    await asyncio.gather(*(node.wrap() for _ in range(8)))  # each session has its key
    await node.quiet(shim)
    shim.set("corrupt=1")
    await node.wrapping("software")
    await node.until(lambda: node.created("failed"))
    found = []
    while not found or found[-1].path is Path.TOKEN:
        found.append(await node.wrap())
        await asyncio.sleep(0.01)

    assert (1, 1) == (node.created(), node.created("failed"))
    assert ["the token cannot read back what it has just wrapped"] == warnings(logs)
    assert len(found) > 1
    assert "ok" == node.look().state
    assert await opens_after_restart(node, *found)


@pytest.mark.parametrize("rv", [NO_RNG, 0x30])
async def test_no_random_bytes(make_node, shim, logs, rv):
    """If C_GenerateRandom fails, the log says so once, and the token wraps."""
    shim.set(f"C_GenerateRandom rv={rv:#x}")
    node = await make_node()
    await node.until(lambda: node.created("failed") > 6)
    sealed = [await node.wrap(api=api) for api in ("v1", "v2")]

    assert [Path.TOKEN] * 2 == [one.path for one in sealed]
    assert "ok" == node.look().state
    assert 1 == len(warnings(logs))
    assert warnings(logs)[0].startswith("C_GenerateRandom returned CKR_")

    shim.clear()
    await node.until(node.created)
    assert Path.LOCAL == (await node.wrap()).path


MOMENTS = [
    "C_GenerateRandom",
    "C_EncryptInit",
    "C_Encrypt",
    "C_DecryptInit",
    "C_Decrypt",
]


@pytest.mark.parametrize("how", ["rv=0x30", "abort"])
async def test_token_fails_at_a_birth(make_node, shim, how):
    """A local KEK is created soon after any call for it fails or ends the worker."""
    node = await make_node("token", **SELDOM)
    sealed = []
    for moment in MOMENTS:
        await node.quiet(shim)
        struck, born = shim.acted(moment), node.created()
        shim.set(f"{moment} count=1 {how}")
        await node.wrapping("software")
        await node.until(lambda born=born: node.created() > born)
        sealed.append(await node.wrap())
        await node.wrapping("token")

        assert 1 == shim.acted(moment) - struck, moment
        assert Path.LOCAL == sealed[-1].path
    assert await opens_after_restart(node, *sealed)


async def test_token_is_away_at_the_first_birth(make_node, shim):
    """Without the token and without a local KEK Encrypt fails, and Status says so."""
    node = await make_node("token")
    shim.set(DOWN)
    await node.wrapping("software")
    state = await node.state("failed")

    assert issubclass(await refused(node.wrap()), UnavailableError)
    assert state.key_id
    shim.clear()
    await node.until(node.created)
    assert Path.LOCAL == (await node.wrap()).path


# Replacement

SLOW = [f"{name} sleep=300" for name in ("C_GenerateRandom", "C_Encrypt", "C_Decrypt")]


async def test_replaced_by_uses(make_node, shim):
    """No Encrypt waits while a slow token creates the next local KEK."""
    node = await make_node(local_keys={"max_uses": 50})
    shim.set(*SLOW)
    load = Load(node)
    await load.until(lambda: len(load.uses) == 4)
    shim.clear()
    *replaced, _ = load.uses.values()

    assert all(uses > 50 for uses in replaced)
    assert await opens_after_restart(node, *load.records.values())


async def test_replaced_by_age_if_used(make_node):
    """A local KEK older than `max_age` is replaced if it was used, and only then."""
    node = await make_node(local_keys={"max_age": "500ms"})
    created = []
    sealed = []
    for _ in range(2):
        await asyncio.sleep(1.5)  # a window in which an unused one must stay
        created.append(node.created())
        sealed.append(await node.wrap())
        await node.until(lambda: node.created() > created[-1])

    assert [1, 2] == created
    assert nested(sealed[0]) != nested(sealed[1])


async def test_token_is_away_at_a_replacement(make_node, shim):
    """A local KEK is used beyond `max_uses` until the token is available again."""
    node = await make_node(local_keys={"max_uses": 50})
    load = Load(node)
    load.once()
    shim.set(DOWN)
    await node.state("degraded")
    await load.until(lambda: sum(load.uses.values()) > 500)
    await load.until(lambda: node.created("failed") > 2)
    before = len(load.uses)
    shim.clear()
    await load.until(lambda: len(load.uses) > before)

    assert 1 == before
    assert await opens_after_restart(node, *load.records.values())


async def test_hard_limit_in_an_outage(make_node, shim):
    """A local KEK at its hard limit wraps no more until the token is available."""
    node = await make_node()
    load = Load(node)
    load.once()
    shim.set(DOWN)
    await node.state("degraded")
    sealer = node.engine.local.sealer(node.engine.keys.current)
    sealer.uses = MAX_USES - 2
    load.once()
    last = load.once()

    assert issubclass(await refused(node.wrap()), UnavailableError)
    assert MAX_USES == sealer.uses
    await node.state("failed")
    assert DEK == (await node.unwrap(last)).plaintext

    shim.clear()
    await node.well()
    await node.until(lambda: node.created() > 1)
    assert nested(last) != nested(load.once())


async def test_max_offline(make_node, shim):
    """`max_offline` after the last good canary Encrypt fails, and Status says so."""
    node = await make_node()
    load = Load(node)
    loop = asyncio.get_running_loop()
    shim.set(DOWN)
    began = loop.time()
    await node.state("degraded")
    load.once()
    await node.reload(local_keys={"max_offline": "5s"})
    await node.until(lambda: node.look().state == "failed")
    error = await refused(node.wrap())
    lasted = loop.time() - began
    opened = await node.unwrap(next(iter(load.records.values())))

    assert issubclass(error, UnavailableError)
    assert lasted > 1
    assert (DEK, Path.LOCAL) == (opened.plaintext, opened.path)

    shim.clear()
    await node.state("ok")
    load.once()
    assert {"ok"} == {node.look().state, node.look().healthz}


async def test_no_time_offline(make_node, shim):
    """With `max_offline: 0s` local KEKs wrap only while the token is available."""
    node = await make_node(local_keys={"max_offline": "0s"})
    Load(node).once()
    shim.set(DOWN)
    await node.state("failed")

    assert issubclass(await refused(node.wrap()), UnavailableError)


# Rotation


async def test_rotation_waits_for_the_local_kek(make_node, shim, maker):
    """A new key becomes current once it has a local KEK, which then wraps at once."""
    node = await make_node()
    old = node.announce().key_id
    load = Load(node)
    load.once()
    shim.set(NO_BIRTH)
    await maker.make(now() - 1000)
    await node.until(lambda: node.created("failed") > 3)
    shown = {node.announce().key_id for _ in range(3)}
    load.once()
    pending = [one.key.key_id for one in node.engine.keys.ring.pending]
    shim.clear()
    await load.until(lambda: [node.announce().key_id] == pending)
    load.once()

    assert {old} == shown
    assert [old, *pending] == load.key_ids
    assert await opens_after_restart(node, *load.records.values())


async def test_two_keys_at_once(make_node, shim, maker):
    """Of two keys whose activation time has passed, the younger becomes current."""
    node = await make_node()
    old = node.announce().key_id
    shim.set(NO_BIRTH)
    for ago in (2000, 1000):
        await maker.make(now() - ago)
    await node.until(lambda: len(node.engine.keys.ring.pending) == 2)
    youngest = node.engine.keys.ring.pending[-1].key.key_id
    shim.clear()
    load = Load(node)
    await load.until(lambda: node.announce().key_id == youngest)
    load.once()

    assert [old, youngest] == [load.key_ids[0], load.key_ids[-1]]
    assert node.created() <= 3
    assert await opens_after_restart(node, *load.records.values())


async def test_both_keys_of_a_switch(make_node, maker):
    """v2 switches to a new key when Status announces it, v1 at its activation time."""
    node = await make_node()
    old = node.announce().key_id
    v2, v1 = Load(node, "v2"), Load(node, "v1")
    v2.once()
    await maker.make(now() - 1000)
    await node.until(lambda: node.look().key_id != old)
    new = node.look().key_id
    for _ in range(3):
        await asyncio.sleep(0.3)  # looks of the monitor
        v1.once()
        v2.once()
    between = ([old], [new]) == (v2.key_ids, v1.key_ids)
    node.announce()
    v2.once()

    assert between
    assert [old, new] == v2.key_ids
    assert 2 == node.created()
    assert await opens_after_restart(node, *v1.records.values(), *v2.records.values())


async def test_token_is_away_at_a_rotation(make_node, shim, maker):
    """A key activated in an outage becomes current when the token is back."""
    node = await make_node()
    old = node.announce().key_id
    await maker.make(now() + 3600)
    await node.until(lambda: node.engine.keys.ring.pending)
    shim.set(DOWN)
    await node.state("degraded")
    node.engine.keys.clock = lambda: now() + 3601
    load = Load(node)
    end = asyncio.get_running_loop().time() + 1  # several looks
    await load.until(lambda: asyncio.get_running_loop().time() > end)
    shown = node.announce().key_id
    shim.clear()
    await load.until(lambda: node.announce().key_id != old)
    load.once()

    assert old == shown
    assert [old, node.announce().key_id] == load.key_ids
    assert await opens_after_restart(node, *load.records.values())


async def test_suffix(make_node):
    """A new suffix has a local KEK of its own, and records of the old one decrypt."""
    node = await make_node()
    old = node.announce().key_id
    load = Load(node)
    before = load.once()
    task = asyncio.create_task(node.reload(keys={"suffix": "two"}))
    await load.until(lambda: node.announce().key_id != old)
    after = load.once()
    await task

    assert [old, f"{old}.two"] == load.key_ids
    inner = Record.decode(nested(after), kinds=NESTED).header
    assert (f"{old}.two", Kind.LOCAL_KEK_BY_TOKEN) == (inner.key_id, inner.kind)
    opened = [await node.unwrap(one) for one in (before, after)]
    assert [(DEK, Path.LOCAL)] * 2 == [(one.plaintext, one.path) for one in opened]


@pytest.mark.parametrize(
    ("v2", "state"), [("software", "degraded"), ("token", "failed")]
)
async def test_reload_in_an_outage(make_node, shim, logs, v2, state):
    """A configuration that needs the token is rejected while it is unavailable."""
    node = await make_node()
    if v2 != "software":
        await node.wrapping(v2, "software")
    old = node.announce().key_id
    load = Load(node, "v1")
    before = load.once()
    shim.set(DOWN)
    await node.state(state)
    await node.reload(keys={"suffix": "two"}, token={"start_timeout": "2s"})

    assert old == node.announce().key_id == load.once().key_id
    assert state == node.look().state
    assert DEK == (await node.unwrap(before)).plaintext
    assert [one for one in logs if "configuration rejected" in one["event"]]


def in_memory(header):
    """Count the local KEKs with this header that are alive, whoever holds them."""
    found = [each for each in gc.get_objects() if isinstance(each, LocalKek)]
    return len([kek for kek in found if kek.header == header])


async def test_retired_key(make_node, maker):
    """Retiring a key refuses its records at once, and nothing holds its local KEKs."""
    node = await make_node()
    old = node.announce().key_id
    before = await node.wrap()
    header = node.lasting.opened.find(before.ciphertext, "").header
    held = in_memory(header)
    await maker.make(now() - 1000)
    await node.until(lambda: node.announce().key_id != old)
    after = await node.wrap()
    both = [(await node.unwrap(one)).path for one in (before, after)]
    await node.reload(keys={"retired": [old]})

    assert [Path.LOCAL] * 2 == both
    for api in ("v1", "v2"):
        assert KeyRetiredError == await refused(node.unwrap(before, api=api))
    assert (1, 0) == (held, in_memory(header))
    assert DEK == (await node.unwrap(after)).plaintext
    assert kind(before) is Kind.DEK_BY_LOCAL_KEK

    await node.reload(keys={"retired": []})
    opened = await node.unwrap(before)
    assert (DEK, Path.LOCAL_UNCACHED) == (opened.plaintext, opened.path)
