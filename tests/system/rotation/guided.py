"""Run `hsm-kms rotation` by the clock of a node, on an etcd that a test fills."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from hsm_kms.cli.rotation.journal import FILE
from tests.cli.keys_rig import stored_value
from tests.harness.command_line import HSM_KMS, Ended
from tests.harness.wait import patient, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.harness.etcd_server import EtcdServer
    from tests.system.rotation.nodes import RotationNode

PASSES = {"switch": 600.0, "settle": 200.0}  # seconds that a step waits for, and more
OBJECTS = 3


class Guide:
    """Run the command on the first node.

    Args:
        nodes: All nodes.
        etcd: The etcd, which holds values of the first node.

    Attributes:
        old: key_id of the key that is current at first.
    """

    def __init__(self, nodes: Sequence[RotationNode], etcd: EtcdServer) -> None:
        self.nodes = list(nodes)
        self.node = nodes[0]
        self.journal = self.node.state_dir / FILE
        self.old = self.node.status().key_id
        self._etcd = etcd
        self.write()

    def write(self) -> None:
        """Store objects under the key that the first node encrypts with."""
        for number in range(OBJECTS):
            key = b"/registry/secrets/d/%d" % number
            self._etcd.knobs.objects[key] = stored_value(self.node)

    def command(self, action: str, *arguments: str) -> list[str]:
        """Return a command line."""
        more = ["--endpoints", self._etcd.endpoint] if action != "status" else []
        config = ("--config", str(self.node.config_file))
        return [*HSM_KMS, "rotation", action, *arguments, *more, *config]

    def names(self) -> list[str]:
        """Return the options that name all nodes, and the method."""
        ports = (f"127.0.0.1:{each.http_port()}" for each in self.nodes)
        named = [part for port in ports for part in ("--node", port)]
        return [*named, "--with", "elsewhere", "--yes"]

    def run(self, action: str, *arguments: str) -> Ended:
        """Run a command to its end."""
        return Ended.of(
            subprocess.run(
                self.command(action, *arguments),
                env=os.environ | self.node.clock.env,
                check=False,
                capture_output=True,
                text=True,
                timeout=patient(120),
            )
        )

    @contextmanager
    def running(self, action: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command in the background, at most until the end of the block."""
        process = subprocess.Popen(
            self.command(action, *arguments),
            env=os.environ | self.node.clock.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run_over_time(self, action: str, *arguments: str) -> Ended:
        """Run a command, and let the time pass that its steps wait for."""
        with self.running(action, *arguments) as process:
            for step, seconds in PASSES.items():
                wait_for(partial(self.began, step, process))
                if process.poll() is None:
                    wait_for(self._seen)  # or they doubt a clock that jumps
                    for node in self.nodes:
                        node.clock.move(seconds)
            out, err = process.communicate(timeout=patient(120))
        return Ended(process.returncode, out, err)

    def _seen(self) -> bool:
        """Return True if all nodes hold the new key."""
        new = self.read()["new_key"]
        return all(new in set(node.keys()) for node in self.nodes)

    def began(self, step: str, process: subprocess.Popen[str]) -> bool:
        """Return True if the journal has the step, or the command has ended."""
        began = self.journal.exists() and step in self.read()["steps"]
        return began or process.poll() is not None

    def read(self) -> dict[str, Any]:
        """Return the journal."""
        found: dict[str, Any] = json.loads(self.journal.read_text())
        return found

    def status(self) -> dict[str, Any]:
        """Return what `rotation status` prints as JSON."""
        found: dict[str, Any] = json.loads(self.run("status", "-o", "json").out)
        return found
