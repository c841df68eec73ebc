"""A rotation as docs/rotation.md describes it, while Secrets are written and read."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.clock.driver import Clock
from tests.harness.command_line import HSM_KMS
from tests.harness.wait import patient
from tests.system.e2e.plugin import Plugin
from tests.system.e2e.processes import wait_for
from tests.system.e2e.stored import parse_v2
from tests.system.e2e.world import NAMESPACE, Client, World, Writer, running_world

if TYPE_CHECKING:
    from tests.system.e2e.cluster import ApiServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600, func_only=True)]

COMMAND_TIMEOUT = patient(120.0)  # seconds
NOTICED = 90.0  # a poll of the API server, and what it takes on a busy machine
# Seconds, less than the two minutes that are demanded, but enough for `keys list`.
ACTIVATE_IN = 20
DAY = 24 * 3600
READYZ = "/readyz/kms-providers"


class Reader(Client):
    """Reads one Secret after the other, and keeps what did not work."""

    def __init__(self, api: ApiServer, names: list[str]) -> None:
        super().__init__(
            itertools.cycle(names),
            lambda name: api.get(f"{NAMESPACE}/{name}"),
            expected=200,
        )


class Operator:
    """Types the commands of docs/rotation.md."""

    def __init__(self, world: World, plugin: Plugin | None = None) -> None:
        self._world = world
        self._plugin = plugin or world.plugin
        self.endpoints = f"--endpoints={world.etcd.url}"

    def run(
        self, *command: str, env: dict[str, str] | None = None, code: int = 0
    ) -> str:
        """Run a command on the node, which must end with this code."""
        done = subprocess.run(
            [*HSM_KMS, *command],
            env=self._world.environment | (env or {}),
            check=False,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
        )
        assert code == done.returncode, done.stderr + done.stdout
        return done.stdout

    def on_token(self, *command: str, **more: Any) -> Any:
        """Run a command with the configuration; return the JSON that it prints."""
        config = ("--config", str(self._plugin.config_file), "-o", "json")
        said = self.run(*command, *config, **more)
        return json.loads(said) if said else None

    def states(self) -> dict[str, str]:
        """Return the state of each key, by key_id."""
        listed = self.on_token("keys", "list")
        return {key["key_id"]: key["state"] for key in listed}

    def unused(self, key_id: str) -> str:
        """Check that nothing in etcd needs the key."""
        return self.run(
            *("etcd", "scan", self.endpoints, "--fail-if", f"key_id={key_id}")
        )

    def migrate(self) -> str:
        """Re-encrypt every stale Secret."""
        kubeconfig = f"--kubeconfig={self._world.folder / 'kubeconfig'}"
        kubectl = f"--kubectl={self._world.binaries.kubectl}"
        return self.run("migrate", kubeconfig, kubectl, "--rate", "1000")


def key_ids(world: World) -> dict[str, str]:
    """Return the key_id of each stored Secret."""
    return {
        name.removeprefix("default/"): parse_v2(value).key_id
        for name, value in world.etcd.secrets().items()
    }


def rotate(world: World, operator: Operator) -> str:
    """Make a key, and wait until it is current; return its key_id."""
    made = operator.on_token(
        *("keys", "rotate", "--activate-in", f"{ACTIVATE_IN}s", "--force")
    )
    assert "pending" == operator.states()[made["key_id"]]
    wait_for(
        "the new key in Status",
        lambda: world.plugin.status().key_id == made["key_id"],
        timeout=NOTICED,
    )
    return made["key_id"]


def write_under(world: World, name: str, key_id: str) -> None:
    """Write a Secret again and again until the API server has taken the key."""

    def written() -> bool:
        world.api.get(READYZ)  # which asks for Status, as the poll each minute does
        world.api.kubectl("delete", "secret", name, "--ignore-not-found")
        world.create(name, f"text of {name}")
        return key_id == parse_v2(world.stored(name)).key_id

    wait_for(f"a write under {key_id}", written, timeout=NOTICED, every=0.5)


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


def everything_reads(world: World, names: list[str]) -> None:
    """An API server with empty caches reads every Secret."""
    world.api.restart()
    status, body = world.api.get(NAMESPACE)
    assert 200 == status, body.decode()
    there = {item["metadata"]["name"] for item in json.loads(body)["items"]}
    assert there >= set(names)
    assert f"text of {names[0]}" == world.read(names[0])


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
