"""Three control-plane nodes: a plugin and an API server each, one token, one etcd."""

from __future__ import annotations

import base64
import itertools
import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.harness.clock.driver import Clock
from tests.system.e2e.cluster import ApiServer
from tests.system.e2e.etcd import Etcd
from tests.system.e2e.plugin import Plugin, TokenOfOthers
from tests.system.e2e.processes import wait_for
from tests.system.e2e.rotating import wait_until_current, write_under
from tests.system.e2e.shells import node_shell
from tests.system.e2e.world import NAMESPACE, Client, World, secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.harness.terminals import Shell
    from tests.system.e2e.binaries import Binaries

READYZ = "/readyz/kms-providers"
NOTICED = 90.0  # seconds; the API server believes a good Status for 20
PAUSE = 0.5  # seconds between two Secrets of a client
MORE = 10  # Secrets of each client, to see that all goes on


class ControlPlane(NamedTuple):
    """One node.

    Args:
        world: Plugin and API server of the node, and the etcd of all nodes.
        clock: By which the plugin and the commands on the node go.
        shell: A shell of root on the node.
    """

    world: World
    clock: Clock
    shell: Shell

    @property
    def plugin(self) -> Plugin:
        """Return the plugin."""
        return self.world.plugin

    def wait_ready(self, wanted: bool) -> None:
        """Wait until the API server takes its plugin for healthy, or does not."""
        wait_for(
            f"readyz: {wanted}",
            lambda: (self.world.api.get(READYZ)[0] == 200) is wanted,
            timeout=NOTICED,
            every=0.5,
        )

    def wait_states(self, wanted: dict[str, str]) -> None:
        """Wait until the server holds these keys in these states, and no other."""
        wait_for(f"{wanted}", lambda: self.states() == wanted, timeout=NOTICED)

    def states(self) -> dict[str, str]:
        """Return the state of each key that the server holds, by key_id."""
        keys = self.plugin.server().get("keys", [])
        return {key["key_id"]: key["state"] for key in keys}

    def wait_writes(self, key_id: str) -> None:
        """Wait until the API server writes under a key."""
        wait_until_current(self.world, key_id)
        write_under(self.world, f"new-{self.world.folder.name}", key_id)

    def reads(self, name: str) -> tuple[int, bytes]:
        """Read a Secret; return 200 only if it has its own text."""
        status, body = self.world.api.get(f"{NAMESPACE}/{name}")
        if status == 200:
            text = base64.b64decode(json.loads(body)["data"]["text"]).decode()
            status = 200 if text == text_of(name) else 0
        return status, body


@contextmanager
def running_nodes(
    binaries: Binaries,
    folder: Path,
    members: int,
    skews: Sequence[float],
    **sections: Any,
) -> Iterator[list[ControlPlane]]:
    """Run a node for each skew of its clock, in seconds, on an etcd of some members.

    Args:
        binaries: The programs.
        folder: For their files.
        members: Number of members of etcd.
        skews: By how many seconds the clock of each node is off.
        sections: More of the configuration of the plugins.
    """
    with ExitStack() as running:
        etcd = Etcd(binaries, folder, members)
        running.callback(etcd.stop)
        nodes: list[ControlPlane] = []
        for number, skew in enumerate(skews):
            own = folder / f"n{number}"
            own.mkdir()
            clock = Clock(own, skew)
            token = TokenOfOthers(nodes[0].plugin.token, own) if nodes else None
            plugin = Plugin(own / "p", token, clock.env)
            plugin.configure(**{"keys": {"discover": "2s"}, **sections})
            plugin.start()
            running.callback(plugin.stop)
            api = ApiServer(binaries, etcd, own)
            world = World(own, binaries, etcd, api, plugin)
            running.callback(api.stop)
            api.start(world.encryption("v2"))
            nodes.append(ControlPlane(world, clock, node_shell(world, clock.env)))
        yield nodes


def forward(nodes: Sequence[ControlPlane], seconds: float) -> None:
    """Move the clocks of all nodes alike."""
    for node in nodes:
        node.clock.move(seconds)


def text_of(name: str) -> str:
    """Return the text of a Secret."""
    return f"text of {name}"


class Traffic:
    """A client of each node, which others read after: from `with` to its end.

    Each creates a Secret at its node, reads it at all others, and reads an old one.

    Args:
        nodes: The nodes.
        old: Names of Secrets.
    """

    def __init__(self, nodes: Sequence[ControlPlane], old: Sequence[str]) -> None:
        self._clients = [
            Client(
                _names(number),
                _Visit(node, [each for each in nodes if each is not node], old),
                expected=200,
                pause=PAUSE,
            )
            for number, node in enumerate(nodes)
        ]
        self._each = len(nodes) + 1

    def __enter__(self) -> Self:
        for client in self._clients:
            client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for client in self._clients:
            client.__exit__(*error)

    @property
    def names(self) -> list[str]:
        """Return the names of the Secrets that were created so far."""
        return [name for client in self._clients for name in client.names]

    @property
    def failures(self) -> list[str]:
        """Return every request that failed, or read another text."""
        return [each for client in self._clients for each in client.failures]

    @property
    def requests(self) -> int:
        """Return the number of requests of those Secrets."""
        return self._each * len(self.names)

    def goes_on(self) -> None:
        """Wait until each client has created some more Secrets."""
        wanted = [len(client.names) + MORE for client in self._clients]

        def created() -> bool:
            now = [len(client.names) for client in self._clients]
            return all(map(int.__ge__, now, wanted))

        wait_for("more Secrets", created, timeout=NOTICED)
        assert not self.failures, self.failures[:3]


def _names(client: int) -> Iterator[str]:
    for count in itertools.count():
        yield f"by-{client}-{count}"


class _Visit:
    """Create a Secret at a node, and read it at the others."""

    def __init__(
        self, node: ControlPlane, others: list[ControlPlane], old: Sequence[str]
    ) -> None:
        self._node = node
        self._others = others
        self._old = itertools.cycle(old)

    def __call__(self, name: str) -> tuple[int, bytes]:
        body = secret(name, text_of(name))
        status, answer = self._node.world.api.request("POST", NAMESPACE, body)
        if status != 201:
            return status, answer
        reads = [(each, name) for each in self._others]
        for reader, wanted in [*reads, (self._node, next(self._old))]:
            status, answer = reader.reads(wanted)
            if status != 200:
                break
        return status, answer
