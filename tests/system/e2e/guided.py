"""The guided rotation on a node, as a process that can be killed at any step."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from tests.harness.command_line import HSM_KMS
from tests.harness.http_server import Handler, HttpServer
from tests.harness.plugin import get
from tests.harness.wait import patient
from tests.system.e2e.control_planes import forward
from tests.system.e2e.processes import TIED, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.system.e2e.control_planes import ControlPlane

ACTIVATE_IN = 600.0  # seconds: the default of `rotation start`
SETTLE = 200.0  # seconds, more than the three minutes of the step
PASSES = {"switch": ACTIVATE_IN, "settle": SETTLE}  # the time that a step waits for
BEGINS = 300.0  # seconds; a step waits for the steps before it
HTTP = {"listen": "127.0.0.1:0"}


def metrics_of(node: ControlPlane) -> str:
    """Return host and port of the metrics of a node."""
    complete = node.plugin.log().rpartition("\n")[0]  # the last is half written
    lines = [json.loads(each) for each in complete.splitlines()]
    ports = [each["port"] for each in lines if each.get("port")]
    return f"127.0.0.1:{ports[-1]}"


class _FrozenHandler(Handler):
    server: FrozenMetrics

    def respond(self) -> None:
        self.answer(self.server.page(), "text/plain; version=0.0.4")


class FrozenMetrics(HttpServer):
    """Serve the metrics of a node, and from `freeze` to `thaw` those of before."""

    def __init__(self, node: ControlPlane) -> None:
        super().__init__(_FrozenHandler)
        self._node = metrics_of(node)
        self._frozen: bytes | None = None
        self.address = f"127.0.0.1:{self.server_port}"

    def page(self) -> bytes:
        """Return the page."""
        if self._frozen is not None:
            return self._frozen
        _, page = get(HTTPConnection(self._node, timeout=patient(30)), "/metrics")
        return page.encode()

    def freeze(self) -> None:
        """Serve what the node reports now, whatever it reports later."""
        self._frozen = self.page()

    def thaw(self) -> None:
        """Serve what the node reports."""
        self._frozen = None


class Guide:
    """Run `hsm-kms rotation` on one node.

    Args:
        node: The node.
        nodes: All nodes of the cluster.
        journal: The journal; one in the folder of the node if None.
    """

    def __init__(
        self,
        node: ControlPlane,
        nodes: Sequence[ControlPlane],
        journal: Path | None = None,
    ) -> None:
        self._node = node
        self._nodes = nodes
        self._folder = node.world.folder
        self.journal = journal or self._folder / "rotation.json"
        self._process: subprocess.Popen[str] | None = None

    def command(self, action: str, *arguments: str) -> list[str]:
        """Return the command line."""
        world = self._node.world
        more = ["--config", str(world.plugin.config_file)]
        if action != "status":
            more += ["--endpoints", world.etcd.url]
            more += ["--kubectl", str(world.binaries.kubectl)]
            more += ["--kubeconfig", str(world.api.kubeconfig)]
        return [
            *TIED,
            *HSM_KMS,
            *("rotation", action, "--journal", str(self.journal)),
            *arguments,
            *more,
        ]

    def names(self) -> list[str]:
        """Return the options that name all nodes."""
        return [part for each in self._nodes for part in ("--node", metrics_of(each))]

    @property
    def _env(self) -> dict[str, str]:
        return {**self._node.world.environment, **self._node.clock.env}

    @contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        """Run a command in the background, at most until the end of the block."""
        with (self._folder / "rotation.log").open("a") as log:
            self._process = process = subprocess.Popen(
                self.command(*arguments),
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def read(self) -> dict[str, Any]:
        """Return the journal, empty before there is one."""
        if not self.journal.exists():
            return {"steps": {}}
        found: dict[str, Any] = json.loads(self.journal.read_text())
        return found

    def wait_begun(self, step: str) -> None:
        """Wait until a step has begun."""
        process = self._process

        def begun() -> bool:
            assert process is None or process.poll() is None, self.said()
            return step in self.read()["steps"]

        wait_for(f"{step} in the journal", begun, timeout=BEGINS, every=0.005)

    def kill(self) -> None:
        """End the command with SIGKILL."""
        process = self._process
        assert process
        process.kill()
        assert process.wait(patient(60)) == -9

    def ended(self) -> int:
        """Wait for the end of the command; return its exit code."""
        assert self._process
        return self._process.wait(patient(BEGINS))

    def said(self) -> str:
        """Return all that the commands have printed."""
        return (self._folder / "rotation.log").read_text()

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it printed."""
        ended = subprocess.run(
            self.command(*arguments),
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=patient(120),
        )
        return ended.returncode, ended.stdout

    def pass_time(self, step: str) -> None:
        """Let the time pass that a step waits for, on the clocks of all nodes."""
        if step == "switch":  # a node that has not seen the key doubts its clock
            new = self.read()["new_key"]
            for node in self._nodes:
                node.wait_states({self.read()["old_key"]: "current", new: "pending"})
        if step == "settle":  # what API servers do in a minute, no clock hurries
            for node in self._nodes:
                node.wait_writes(self.read()["new_key"])
        forward(self._nodes, PASSES.get(step, 0.0))

    def handed_to(self, node: ControlPlane) -> Guide:
        """Copy the journal to another node, whose command goes on with it."""
        other = Guide(node, self._nodes)
        shutil.copy(self.journal, other.journal)
        return other
