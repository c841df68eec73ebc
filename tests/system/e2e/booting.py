"""One control-plane node that boots: each part starts when a test says so.

kube-apiserver is started again when it ends, as systemd and the kubelet do; nothing
else may end.
"""

from __future__ import annotations

import contextlib
import json
import stat
from typing import TYPE_CHECKING, Any

from tests.harness.slots.driver import Slots
from tests.system.e2e.plugin import softhsm_module
from tests.system.e2e.processes import wait_for
from tests.system.e2e.world import NAMESPACE, encryption, secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.system.e2e.world import World

PARTS = ("etcd", "API server", "plugin", "token")
BOOTED = 240.0  # seconds; an API server that waits long tries again seldom
READYZ = "/readyz/kms-providers"
KEPT = "kept"  # a Secret from before the boot


class Machine:
    """The parts of a node and what they have stored, at first none of them running.

    Args:
        world: The cluster.
        resources: What the EncryptionConfiguration encrypts.

    Attributes:
        exits: How often kube-apiserver has ended since the power was cut.
    """

    def __init__(self, world: World, *resources: str) -> None:
        self.world = world
        self.exits = 0
        self._written = self._boots = 0
        self._log_begins = 0
        self._start: dict[str, Callable[[], None]] = {
            "etcd": world.etcd.launch,
            "API server": world.api.launch,
            "plugin": self._start_plugin,
            "token": self._bring_token,
        }
        self._token = contextlib.ExitStack()
        module = softhsm_module()
        assert module
        self.slots = Slots(world.folder, module)
        env = {"SOFTHSM2_CONF": str(world.plugin.token.conf), **self.slots.env}
        world.plugin.configure(token={"module": str(self.slots.module), "env": env})
        world.plugin.restart()
        world.api.start(_configuration(world, resources))
        world.create(KEPT, "text")
        self.key_id = world.plugin.status().key_id

    def cut_power(self) -> None:
        """End everything at once.

        After that /run is empty, the slots have other numbers, and the token is away.
        """
        world = self.world
        world.api.kill()
        world.plugin.kill()
        world.etcd.kill()
        for path in world.plugin.socket.parent.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode) or path.suffix == ".lock":
                path.unlink()
        self._boots += 1
        self.slots.add(1000 * self._boots)
        self._token.close()
        self._token.enter_context(world.plugin.token.away())
        self.exits = 0
        self._log_begins = world.api.log_size()

    def _start_plugin(self) -> None:
        self.world.plugin.start(ok=False)

    def _bring_token(self) -> None:
        self._token.close()

    def start(self, part: str) -> None:
        """Start one part, or bring the token."""
        self._start[part]()

    def wait_until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait, and start kube-apiserver again whenever it has ended."""

        def reached() -> object:
            self._tend()
            return condition()

        wait_for(what, reached, timeout=BOOTED, every=0.2)

    def _tend(self) -> None:
        if self.world.api.ended:
            self.exits += 1
            self.world.api.launch()

    def logged(self) -> str:
        """Return what kube-apiserver has logged since the power was cut."""
        return self.world.api.logged(self._log_begins)

    def shows(self, *lines: str) -> None:
        """Wait until kube-apiserver has logged these lines."""
        self.wait_until(f"log {lines}", lambda: all(x in self.logged() for x in lines))

    def answers(self, path: str) -> int:
        """Return the status of the answer to a GET; 0 if there is none."""
        try:
            return self.world.api.get(path)[0]
        except OSError:
            return 0

    def is_well(self) -> bool:
        """Return True if the API server is ready, and reads and writes Secrets."""
        if self.answers("/readyz") != 200 or self.answers(READYZ) != 200:
            return False
        status, body = self.world.api.get(f"{NAMESPACE}/{KEPT}")
        if status != 200:
            return False
        assert "dGV4dA==" == json.loads(body)["data"]["text"]
        self._written += 1
        body_of = secret(f"written-{self._written}", "text")
        return self.world.api.request("POST", NAMESPACE, body_of)[0] == 201

    def recovers(self) -> None:
        """Wait until all is well without any help, under the key of before."""
        self.wait_until("a node that is well", self.is_well)
        assert self.world.plugin.running
        assert self.key_id == self.world.plugin.status().key_id


def _configuration(world: World, resources: tuple[str, ...]) -> Path:
    """Write an EncryptionConfiguration with the timeout that is Kubernetes' default."""
    whole: Any = encryption(["v2"], world.plugin.socket)
    whole["resources"][0]["resources"] = list(resources)
    whole["resources"][0]["providers"][0]["kms"]["timeout"] = "3s"
    path = world.folder / "encryption.json"
    path.write_text(json.dumps(whole))
    return path
