"""A rotation as docs/rotation.md describes it, while Secrets are written and read."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness.clock.driver import Clock
from tests.system.e2e.plugin import Plugin
from tests.system.e2e.rotating import (
    ACTIVATE_IN,
    DAY,
    Operator,
    everything_reads,
    key_ids,
    rotate,
    write_under,
)
from tests.system.e2e.stored import parse_v2
from tests.system.e2e.world import NAMESPACE, Client, Writer, running_world

if TYPE_CHECKING:
    from tests.system.e2e.cluster import ApiServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600, func_only=True)]


class Reader(Client):
    """Reads one Secret after the other, and keeps what did not work."""

    def __init__(self, api: ApiServer, names: list[str]) -> None:
        super().__init__(
            itertools.cycle(names),
            lambda name: api.get(f"{NAMESPACE}/{name}"),
            expected=200,
        )


def test_60_a_rotation_from_end_to_end(binaries, new_folder):
    """Rotate, migrate, scan, retire and destroy under load fail no request."""
    with running_world(binaries, new_folder()) as world:
        operator = Operator(world)
        world.api.start(world.encryption("v2"))
        names = [f"first-{number}" for number in range(5)]
        for name in names:
            world.create(name, f"text of {name}")
        old = world.plugin.status().key_id
        assert {old} == set(key_ids(world).values())

        with Writer(world.api, "during") as writer, Reader(world.api, names) as reader:
            before = time.monotonic()
            new = rotate(world, operator)
            assert time.monotonic() - before >= ACTIVATE_IN - 1
            write_under(world, "after", new)
            operator.migrate()
        assert [] == writer.failures
        assert [] == reader.failures
        assert reader.names

        operator.migrate()
        assert {new} == set(key_ids(world).values())
        operator.unused(old)
        operator.run(
            *("etcd", "scan", operator.endpoints, "--fail-if", f"key_id={new}"), code=1
        )
        operator.on_token("etcd", "verify", operator.endpoints)
        operator.on_token("keys", "retire", old, "--yes", operator.endpoints)
        assert "retired" == operator.states()[old]
        everything_reads(world, [*names, *writer.names])

        destroy = ("keys", "destroy", old, "--confirm", old, operator.endpoints)
        later = Clock(world.folder)
        later.set(DAY + 60)
        operator.on_token(*destroy, "--backups-expired", code=1)  # retired just now
        operator.on_token(*destroy, "--backups-expired", env=later.env)
        assert old not in operator.states()
        everything_reads(world, [*names, *writer.names])


def test_the_way_back_with_a_suffix(binaries, new_folder):
    """A former key is current again with a suffix; nodes without it decrypt."""
    with running_world(binaries, new_folder()) as world:
        operator = Operator(world)
        world.api.start(world.encryption("v2"))
        old = world.plugin.status().key_id
        write_under(world, "under-old", old)
        new = rotate(world, operator)
        write_under(world, "under-new", new)
        other = Plugin(world.folder / "other", token=world.plugin.token)
        try:
            other.start()
            world.plugin.configure(keys={"current": old, "suffix": "back1"})
            again = f"{old}.back1"
            write_under(world, "under-old-again", again)
            stored = parse_v2(world.stored("under-old-again"))
            assert new == other.status().key_id
            assert 32 == len(other.decrypt(stored.encrypted_dek_source, again))
        finally:
            other.stop()
        everything_reads(world, ["under-old", "under-new", "under-old-again"])
        assert {old, new, again} == set(key_ids(world).values())
