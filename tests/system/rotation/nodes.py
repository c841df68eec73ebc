"""Control-plane nodes on one token, each with a clock of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

from hsm_kms.keys.key_id import make_cka_id
from tests.harness.clock.driver import Clock
from tests.harness.command_line import HSM_KMS
from tests.harness.plugin import Plugin
from tests.harness.token_keys import make_key
from tests.harness.wait import wait_for
from tests.system.faults.observed import ObservedServer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.harness.softhsm import SoftHsm

AHEAD = 600.0  # seconds from the creation of a key to its activation time
LOOKS_SECONDS = 1.5  # several looks: a window in which nothing may change


class RotationNode(Plugin):
    """A server with a clock and a way to the token of its own.

    Args:
        directory: Of this node alone.
        hsm: The store that all nodes share.
        pin_file: As for `Plugin`.
        skew: By how many seconds the clock is off.
        sections: As for `Plugin`.
    """

    def __init__(
        self,
        directory: Path,
        hsm: SoftHsm,
        pin_file: Path,
        *,
        skew: float = 0.0,
        **sections: Any,
    ) -> None:
        self.clock = Clock(directory, skew)
        self.way = _Way(directory, hsm)
        super().__init__(directory, hsm, pin_file, **sections)
        self.config["token"]["env"] |= self.way.env
        self.write_config()

    def start(self, *, listening: bool = True) -> RotationNode:
        """Start `hsm-kms serve` by this node's clock, and wait until it listens."""
        command = ["serve", "--config", str(self.config_file)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*HSM_KMS, *command],
                env={**os.environ, **self.clock.env},
                stderr=log,
                stdout=log,
            )
        if listening:
            self.wait_listening()
        return self

    def well(self) -> RotationNode:
        """Wait until all is ok, and all workers serve."""
        self.wait_healthz("ok")
        wait_for(lambda: self.admin()["workers"]["ready"] == self.workers)
        return self

    def cut_off(self) -> None:
        """Take the token away from this node alone."""
        self.way.tokens.unlink()

    def reconnect(self) -> None:
        """Undo `cut_off`."""
        self.way.tokens.symlink_to(self.way.target)

    def admin(self) -> dict[str, Any]:
        """Return what the admin socket serves at /status."""
        return ObservedServer(plugin=self, hsm=self.hsm, shim=None).admin()

    def keys(self) -> dict[str, str]:
        """Return the states of the keys that the server holds, by key_id."""
        return {each["key_id"]: each["state"] for each in self.admin()["keys"]}

    def wait_state(self, key_id: str, state: str) -> None:
        """Wait until the server holds this key in this state."""
        wait_for(lambda: self.keys().get(key_id) == state)

    def reload(self, **keys: Any) -> None:
        """Change the section `keys`, and wait until the change is applied."""
        taken = len(self.events("configuration applied"))
        self.replace_config(**keys)
        wait_for(lambda: len(self.events("configuration applied")) > taken)

    def replace_config(self, **keys: Any) -> None:
        """Change the section `keys`, and tell the server."""
        self.config["keys"] |= keys
        self.write_config()
        os.kill(self.process.pid, signal.SIGHUP)


class _Way:
    """A SoftHSM2 configuration whose token directory is a link to a shared one."""

    def __init__(self, directory: Path, hsm: SoftHsm) -> None:
        self.target = hsm.tokens
        self.tokens = directory / "way"
        self.tokens.symlink_to(hsm.tokens)
        conf = directory / "softhsm2.conf"
        text = hsm.conf.read_text()
        conf.write_text(text.replace(str(hsm.tokens), str(self.tokens)))
        self.env = {"SOFTHSM2_CONF": str(conf)}


def make_kek(hsm: SoftHsm, activation: float, **template: Any) -> bytes:
    """Make a KEK as the command line does; return its CKA_ID."""
    cka_id = make_cka_id(int(activation))
    make_key(hsm, cka_id, **template)
    return cka_id


def key_id_of(node: RotationNode, cka_id: bytes) -> str:
    """Wait until a node holds the key; return its key_id."""

    def found() -> str | None:
        keys = {each["cka_id"]: each["key_id"] for each in node.admin()["keys"]}
        return keys.get(cka_id.hex())

    return wait_for(found)


def announce_key(nodes: Sequence[RotationNode], cka_id: bytes) -> str:
    """Wait until every node shows a new key as pending; return its key_id."""
    key_id = key_id_of(nodes[0], cka_id)
    for node in nodes:
        node.wait_state(key_id, "pending")
    return key_id


def forward(nodes: Sequence[RotationNode], activation: float, before: float) -> None:
    """Move all clocks alike, until the fastest shows so many seconds before a time."""
    seconds = activation - before - max(node.clock.now() for node in nodes)
    for node in nodes:
        node.clock.move(seconds)
