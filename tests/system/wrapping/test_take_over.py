"""A configuration that was refused, or whose trial was interrupted, changes nothing."""

from __future__ import annotations

import asyncio
import os

import pytest

from hsm_kms.clock import now
from hsm_kms.server.engine import Engine
from hsm_kms.tasks import cancel_and_wait
from hsm_kms.wrapping.wrapper import Path
from tests.harness.processes import children_of
from tests.system.wrapping.wrapping_rig import DEK, running

WRITTEN_IN_ANY_CASE = {"pin.json", "nonces.json"}


def saved(node):
    """Return what a restart would begin with: the files of the state directory."""
    return {
        file.name: file.read_bytes()
        for file in node.plugin.state_dir.glob("*.json")
        if file.name not in WRITTEN_IN_ANY_CASE
    }


def change(node, **sections):
    """Change sections of the configuration file; nobody reads it yet."""
    for name, section in sections.items():
        node.plugin.merge(name, section)
    node.plugin.write_config()


async def interrupted(node, logs, key_id):
    """Have the file tried, and end the trial once the new engine has this key."""
    attempt = asyncio.create_task(node.reloads.once())
    await node.until(lambda: ("current key", key_id) in events(logs))
    await cancel_and_wait(attempt)
    assert attempt.cancelled()


def events(logs):
    return [(one["event"], one.get("key_id")) for one in logs]


async def test_refused_has_changed_nothing(make_node, shim, maker, logs):
    """A trial that had a new current key leaves files and local KEKs as they were."""
    node = await make_node()
    old = node.announce().key_id
    sealed = await node.wrap()
    await maker.make(now() + 86_400)
    await node.until(lambda: len(node.engine.keys.ring.keys) == 2)
    (new,) = {key.key_id for key in node.engine.keys.ring.keys} - {old}
    shim.set("C_GenerateRandom hang")  # no local KEK under the new key
    before = saved(node)
    change(node, keys={"current": new, "retired": [old]})
    await interrupted(node, logs, new)
    shim.clear()

    assert before == saved(node)
    assert {"last-key.json", "mechanism.json"} == set(before)
    assert old == node.announce().key_id
    assert Path.LOCAL == (await node.unwrap(sealed)).path

    change(node, keys={"current": None, "retired": []})
    await node.close()
    async with running(node.plugin) as again:
        await again.well()
        assert old == again.announce().key_id
        assert DEK == (await again.unwrap(sealed)).plaintext


async def test_applied_is_saved(make_node, maker):
    """A configuration that is applied is what a restart begins with."""
    node = await make_node()
    old = node.announce().key_id
    await maker.make(now() + 86_400)
    await node.until(lambda: len(node.engine.keys.ring.keys) == 2)
    (new,) = {key.key_id for key in node.engine.keys.ring.keys} - {old}
    await node.reload(keys={"current": new})
    state = node.lasting.state

    assert new == state.last_key().key_id
    assert [old] == [each.key_id for each in state.former_keys()]


async def test_bug_in_a_trial(make_node, maker, monkeypatch):
    """An exception in a trial leaves no worker, and the node still switches keys."""

    def broken(engine):
        if engine.workers.ready:
            raise ZeroDivisionError
        return False

    node = await make_node("token")
    old = node.look().key_id
    before = {*children_of(os.getpid())}
    change(node, keys={"suffix": "two"})
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "well", property(broken))
        with pytest.raises(ZeroDivisionError):
            await node.reloads.once()
    # A fresh worker of the old engine may be there, for a moment.
    await node.until(lambda: {*children_of(os.getpid())} <= before)
    await maker.make(now() - 1000)
    await node.until(lambda: node.look().key_id not in {"", old})


async def test_switch_during_a_trial(make_node, maker, monkeypatch):
    """A key that becomes current while a trial runs is current afterwards as well."""
    node = await make_node("token")
    old = node.announce().key_id
    held_back = True
    tried = []

    def slow(engine):
        if engine not in tried:
            tried.append(engine)
        return False if held_back else is_well(engine)

    is_well = Engine.well.fget
    monkeypatch.setattr(Engine, "well", property(slow))
    change(node, keys={"suffix": "two"})
    attempt = asyncio.create_task(node.reloads.once())
    await node.until(lambda: tried)
    await maker.make(now() + 2)
    await node.until(lambda: node.announce().key_id not in {"", old})
    new = node.look().key_id
    held_back = False
    await attempt

    assert f"{new}.two" == node.announce().key_id
    assert DEK == (await node.unwrap(await node.wrap())).plaintext
    assert tried[0] is not node.engine
