"""From KMS v1 to KMS v2 without a Secret lost."""

from __future__ import annotations

import pytest

from tests.system.e2e.world import prefix, running_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]

NAMES = [f"old-{number}" for number in range(5)]


def test_63_a_rewrite_moves_every_secret_from_v1_to_v2(binaries, new_folder):
    """After a change to [v2, v1] and a rewrite every Secret is encrypted by v2."""
    with running_world(binaries, new_folder()) as world:
        world.api.start(world.encryption("v1"))
        for name in NAMES:
            world.create(name, f"text of {name}")

        before = world.etcd.secrets()
        world.api.restart(world.encryption("v2", "v1"))
        read_as_v1 = [world.read(name) for name in NAMES]
        world.api.rewrite_secrets()
        after = world.etcd.secrets()
        world.api.restart(world.encryption("v2"))
        read_as_v2 = [world.read(name) for name in NAMES]

    assert {True} == {value.startswith(prefix("v1")) for value in before.values()}
    assert before.keys() == after.keys()
    assert {True} == {value.startswith(prefix("v2")) for value in after.values()}
    assert [f"text of {name}" for name in NAMES] == read_as_v1 == read_as_v2
