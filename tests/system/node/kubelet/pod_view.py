"""What an operator sees of the static pod, by kubelet, crictl, cgroups and /proc."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.system.e2e.processes import wait_for
from tests.system.node.kubelet.machine import CGROUPS, PODS
from tests.system.node.kubelet.node import START_SECONDS

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.system.node.kubelet.node import Node


class PodView:
    """What an operator sees of the one container of the static pod.

    Args:
        node: The node.
        crictl: The program crictl.
    """

    def __init__(self, node: Node, crictl: Path) -> None:
        self._node = node
        self._crictl = crictl

    @property
    def status(self) -> dict[str, Any]:
        """Return the kubelet's status of the container; empty before it has one."""
        pod = self._node.pod() or {}
        statuses = pod.get("status", {}).get("containerStatuses") or [{}]
        return dict(statuses[0])

    @property
    def ready(self) -> bool:
        """Return True if the pod is Ready."""
        return bool(self.status.get("ready"))

    def wait_ready(self, ready: bool = True) -> None:
        """Wait until the pod is Ready, or not, with the container that runs now.

        For a moment the kubelet still reports a container that has been replaced.
        """

        def reported() -> bool:
            status = self.status
            return (
                "running" in status.get("state", {})
                and status.get("ready") == ready
                and status.get("containerID") == f"containerd://{self._running()}"
            )

        wait_for(f"ready {ready}", reported, timeout=START_SECONDS, every=0.2)

    def wait_probed(self) -> None:
        """Wait until the kubelet has asked whether the server is alive.

        It asks late when it has just started. A pod that is taken out and put back
        before that is never asked: the kubelet adds no liveness probe while it still
        has a readiness probe.
        """
        wait_for(
            "liveness probe",
            self._node.has_probed_liveness,
            timeout=START_SECONDS,
            every=0.2,
        )

    def crictl(
        self, *arguments: object, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run crictl on the node."""
        return self._node.run(self._crictl, *arguments, check=check)

    def container(self) -> str:
        """Wait until a container runs, and return its ID."""
        return str(wait_for("container", self._running, timeout=START_SECONDS))

    def _running(self) -> str:
        name = ("--name", "hsm-kms", "--state", "running", "--no-trunc", "-q")
        return self.crictl("ps", *name, check=False).stdout.strip()

    def exec(
        self, *command: object, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return self.crictl("exec", self.container(), *command, check=check)

    def pids(self) -> list[int]:
        """Return the container's processes on the node, the server first."""
        inspected = json.loads(self.crictl("inspect", self.container()).stdout)
        first = int(inspected["info"]["pid"])
        cgroup = self.cgroup("pids") or self.cgroup("")
        assert cgroup is not None
        procs = self._node.run("cat", cgroup / "cgroup.procs").stdout.split()
        return [first, *(pid for pid in map(int, procs) if pid != first)]

    def cgroup(self, controller: str) -> Path | None:
        """Return the container's cgroup of a controller; "" for cgroup v2."""
        found = list((CGROUPS / controller / PODS).rglob(f"*{self.container()}*"))
        return found[0] if found else None

    def memory(self, v1: str, v2: str) -> int:
        """Return a number of the container's memory cgroup, by its names."""
        if cgroup := self.cgroup("memory"):
            return int((cgroup / f"memory.{v1}").read_text())
        cgroup = self.cgroup("")
        assert cgroup is not None
        return int((cgroup / f"memory.{v2}").read_text())

    def proc(self, pid: int, file: str) -> str:
        """Return a file of a process of the node in /proc, "" if it has ended."""
        return self._node.run("cat", f"/proc/{pid}/{file}", check=False).stdout

    def kill(self, signal: str = "KILL") -> None:
        """Send a signal to the server."""
        self._node.run("kill", f"-{signal}", self.pids()[0])
