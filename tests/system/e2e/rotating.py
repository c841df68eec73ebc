"""The commands of a rotation, and waiting for what they bring about."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.harness.clock.driver import Clock
from tests.harness.command_line import HSM_KMS
from tests.harness.wait import patient
from tests.system.e2e.processes import wait_for
from tests.system.e2e.stored import parse_v2
from tests.system.e2e.world import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.terminals import Shell
    from tests.system.e2e.plugin import Plugin
    from tests.system.e2e.world import World

COMMAND_TIMEOUT = patient(120.0)  # seconds
NOTICED = 90.0  # a poll of the API server, and what it takes on a busy machine
# Seconds, less than the two minutes that are demanded, but enough for `keys list`.
ACTIVATE_IN = int(patient(20))
DAY = 24 * 3600
READYZ = "/readyz/kms-providers"


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
    wait_until_current(world, made["key_id"])
    return made["key_id"]


@contextmanager
def a_day_later(shell: Shell, world: World) -> Iterator[None]:
    """Let what a shell runs in the block find that more than a day has passed."""
    later = Clock(world.folder)
    later.set(DAY + 60)
    before = shell.env
    shell.env = before | later.env
    yield
    shell.env = before


def everything_reads(world: World, names: list[str]) -> None:
    """An API server with empty caches reads every Secret."""
    world.api.restart()
    status, body = world.api.get(NAMESPACE)
    assert 200 == status, body.decode()
    there = {item["metadata"]["name"] for item in json.loads(body)["items"]}
    assert there >= set(names)
    assert f"text of {names[0]}" == world.read(names[0])


def wait_until_current(world: World, key_id: str) -> None:
    """Wait until Status has this key_id."""
    wait_for(
        "the new key in Status",
        lambda: world.plugin.status().key_id == key_id,
        timeout=NOTICED,
    )


def write_under(world: World, name: str, key_id: str) -> None:
    """Write a Secret again and again until the API server has taken the key."""

    def written() -> bool:
        world.api.get(READYZ)  # which asks for Status, as the poll each minute does
        world.api.kubectl("delete", "secret", name, "--ignore-not-found")
        world.create(name, f"text of {name}")
        return key_id == parse_v2(world.stored(name)).key_id

    wait_for(f"a write under {key_id}", written, timeout=NOTICED, every=0.5)
