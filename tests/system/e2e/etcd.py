"""A real etcd on free loopback ports."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import TYPE_CHECKING

from tests.harness.wait import patient
from tests.system.e2e.processes import Child, awaited, free_ports, started

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

REQUEST_TIMEOUT = patient(60.0)  # seconds
SECRETS = "/registry/secrets/"


class Etcd:
    """One etcd, or several that are members of one cluster.

    Args:
        binaries: The programs.
        folder: For data and logs.
        members: Number of members.
    """

    def __init__(self, binaries: Binaries, folder: Path, members: int = 1) -> None:
        self._binaries = binaries
        self._folder = folder
        self._names = ["etcd", *(f"etcd-{number}" for number in range(1, members))]
        self._clients: dict[str, str] = {}
        self._peers: dict[str, str] = {}
        self._children = started(self._try_start)

    @property
    def url(self) -> str:
        """Return the URLs of all members, as etcdctl and the API server take them."""
        return ",".join(self.urls)

    @property
    def urls(self) -> list[str]:
        """Return the URL of each member."""
        return list(self._clients.values())

    def _try_start(self) -> list[Child]:
        ports = iter(free_ports(2 * len(self._names)))
        self._clients, self._peers = (
            {name: f"http://127.0.0.1:{next(ports)}" for name in self._names}
            for _ in range(2)
        )
        children = self._spawn()

        def healthy() -> bool:
            for child in children:
                child.check()
            return self._ctl("endpoint", "health").returncode == 0

        return awaited("etcd", children, healthy)

    def launch(self) -> None:
        """Start every member once more, at the same address; wait for nothing."""
        self._children = self._spawn()

    def _spawn(self) -> list[Child]:
        together = ",".join(f"{name}={url}" for name, url in self._peers.items())
        return [self._member(name, together) for name in self._names]

    def _member(self, name: str, together: str) -> Child:
        client, peer = self._clients[name], self._peers[name]
        return Child(
            [
                *(self._binaries.etcd, "--name", name),
                *("--data-dir", self._folder / name),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", together),
                *("--unsafe-no-fsync", "--log-level=warn"),
            ],
            log=self._folder / f"{name}.log",
        )

    def _ctl(
        self, *args: str, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._binaries.etcdctl, f"--endpoints={self.url}", *args],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=REQUEST_TIMEOUT,
        )

    def secrets(self) -> dict[str, bytes]:
        """Read every Secret as it is stored, by namespace/name."""
        found = self.ctl("get", SECRETS, "--prefix", "--write-out=json")
        return {
            base64.b64decode(pair["key"])
            .decode()
            .removeprefix(SECRETS): base64.b64decode(pair["value"])
            for pair in json.loads(found).get("kvs", [])
        }

    def ctl(self, *args: str, stdin: bytes | None = None) -> bytes:
        """Run etcdctl, which must succeed, and return what it prints."""
        done = self._ctl(*args, stdin=stdin)
        done.check_returncode()
        return done.stdout

    def stop(self) -> None:
        """Stop every member."""
        for child in self._children:
            child.stop()

    def kill(self) -> None:
        """End every member with SIGKILL."""
        for child in self._children:
            child.kill()
