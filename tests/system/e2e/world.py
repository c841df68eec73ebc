"""A cluster and its plugin together, and what is done to both."""

from __future__ import annotations

import base64
import itertools
import json
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.system.e2e.cluster import ApiServer
from tests.system.e2e.etcd import Etcd
from tests.system.e2e.plugin import Plugin, running_plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.system.e2e.binaries import Binaries

NAMES = {"v2": "hsm", "v1": "hsm-v1"}  # provider names
NAMESPACE = "/api/v1/namespaces/default/secrets"
PAUSE = 0.1  # seconds between two requests of a client


def prefix(version: str) -> bytes:
    """Return what every value begins with that this provider wrote."""
    return f"k8s:enc:kms:{version}:{NAMES[version]}:".encode()


def secret(name: str, text: str) -> dict[str, object]:
    """Return a Secret for the API server."""
    return {"metadata": {"name": name}, "stringData": {"text": text}}


def kms(version: str, name: str, socket: Path, **more: str) -> dict[str, object]:
    """Return a provider of an EncryptionConfiguration."""
    endpoint = f"unix://{socket}"
    return {"kms": {"apiVersion": version, "name": name, "endpoint": endpoint, **more}}


def configuration(
    providers: Mapping[str, list[dict[str, object]]],
) -> dict[str, object]:
    """Return an EncryptionConfiguration with these providers for each resource."""
    return {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [
            {"resources": [resource], "providers": [*given, {"identity": {}}]}
            for resource, given in providers.items()
        ],
    }


def encryption(versions: list[str], socket: Path) -> dict[str, object]:
    """Return an EncryptionConfiguration with these providers, the first writes."""
    timeout = "20s"  # by default 3: a write must survive a slow restart
    providers = [kms(each, NAMES[each], socket, timeout=timeout) for each in versions]
    return configuration({"secrets": providers})


@dataclass(frozen=True)
class World:
    """One etcd, one kube-apiserver, one plugin."""

    folder: Path
    binaries: Binaries
    etcd: Etcd
    api: ApiServer
    plugin: Plugin

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of commands, without ETCDCTL_* and KUBECONFIG."""
        return {
            name: value
            for name, value in os.environ.items()
            if name != "KUBECONFIG" and not name.startswith("ETCDCTL_")
        }

    def encryption(self, *versions: str) -> Path:
        """Write the EncryptionConfiguration with these providers to a file."""
        path = self.folder / f"encryption-{'-'.join(versions)}.json"
        path.write_text(json.dumps(encryption(list(versions), self.plugin.socket)))
        return path

    @contextmanager
    def unencrypted(self, *versions: str) -> Iterator[None]:
        """Run the API server without encryption in the block, then with providers."""
        self.api.start(None)
        yield
        self.api.restart(self.encryption(*versions))

    def create(self, name: str, text: str) -> None:
        """Create a Secret in the namespace default with kubectl."""
        self.api.kubectl(
            "create", "secret", "generic", name, f"--from-literal=text={text}"
        )

    def read(self, name: str) -> str:
        """Read that Secret back with kubectl."""
        found = json.loads(self.api.kubectl("get", "secret", name, "-o", "json"))
        return base64.b64decode(found["data"]["text"]).decode()

    def stored(self, name: str) -> bytes:
        """Read that Secret as etcd holds it."""
        return self.etcd.secrets()[f"default/{name}"]


class Client:
    """Makes one request after the other in the background, and keeps what fails.

    Args:
        names: The Secrets it makes them for; endless.
        request: Makes one for this Secret; returns the answer's status and body.
        expected: The status of an answer that is no failure.
        pause: Seconds between two requests.
    """

    def __init__(
        self,
        names: Iterator[str],
        request: Callable[[str], tuple[int, bytes]],
        expected: int,
        pause: float = PAUSE,
    ) -> None:
        self.failures: list[str] = []
        self.names: list[str] = []  # of the requests so far
        self._next = names
        self._request = request
        self._expected = expected
        self._pause = pause
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.wait(self._pause):
            name = next(self._next)
            try:
                status, body = self._request(name)
            except OSError as error:
                status, body = 0, repr(error).encode()
            self.names.append(name)
            if status != self._expected:
                self.failures.append(f"{name}: {status} {body.decode()}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


class Writer(Client):
    """Creates one Secret after the other, and keeps what did not work."""

    def __init__(self, api: ApiServer, name: str) -> None:
        super().__init__(
            (f"{name}-{number}" for number in itertools.count()),
            lambda name: api.request("POST", NAMESPACE, secret(name, name)),
            expected=201,
        )


@contextmanager
def running_world(binaries: Binaries, folder: Path) -> Iterator[World]:
    """Run everything but kube-apiserver, and stop all of it at the end."""
    with running_plugin(folder / "plugin") as plugin:
        etcd = Etcd(binaries, folder)
        api = ApiServer(binaries, etcd, folder)
        try:
            yield World(folder, binaries, etcd, api, plugin)
        finally:
            api.stop()
            etcd.stop()
