"""One node with KMS v2: what API server, clients and operator see of its plugin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc

from hsm_kms.wrapping.record import Kind, Record
from tests.system.e2e.page import logged
from tests.system.e2e.processes import wait_for
from tests.system.e2e.stored import parse_v2
from tests.system.e2e.world import NAMESPACE, secret

if TYPE_CHECKING:
    from tests.system.e2e.world import World

READYZ = "/readyz/kms-providers"
NOTICED = 90.0  # seconds; the API server believes a good Status for 20
DEK = b"the 32 bytes of some data key..."
TOKEN, LOCAL = Kind.DEK_BY_TOKEN, Kind.DEK_BY_LOCAL_KEK
KINDS = {"token": TOKEN, "fallback": TOKEN, "software": LOCAL}  # while all is well
LASTING = {"grace": "10m", "stop_writes_after": None}


class ClusterNode:
    """Plugin and API server of one node, and what is asked of them.

    Args:
        world: Both.
    """

    def __init__(self, world: World) -> None:
        self.plugin = world.plugin
        self.api = world.api
        self._world = world
        self._written = 0
        self._log_begins = 0

    def begin(
        self, wrapping: str, *, v1: str = "token", health: dict[str, Any] = LASTING
    ) -> None:
        """Restart the plugin in this wrapping mode, with the token available."""
        self.plugin.stop()
        self.plugin.configure(
            apis={
                "v2": {"enabled": True, "wrapping": wrapping},
                "v1": {"enabled": True, "wrapping": v1},
            },
            health=health,
            local_keys={"max_offline": "1d"},
            keys={"current": None},
        )
        self.plugin.start()
        self.wraps(KINDS[wrapping])
        if wrapping != "token":  # the local KEK is created after healthz is ok
            wait_for("a local KEK", self._local_keks, timeout=NOTICED)
        self._log_begins = self.api.log_size()

    def _local_keks(self) -> int:
        """Return how many local KEKs the plugin has created."""
        created: dict[str, int] = self.plugin.server()["local_keks"]["created"]
        return created.get("ok", 0)

    def logged(self) -> str:
        """Return what the API server has logged since `begin`."""
        return self.api.logged(self._log_begins)

    def logs(self, case: str) -> None:
        """Wait until the API server has logged what docs/operations.md says.

        Args:
            case: The first cell of a row of its table of cases.
        """
        lines = logged(case)
        assert lines, case

        def has() -> bool:
            self.api.get(READYZ)  # which has the plugin asked
            return all(line in self.logged() for line in lines)

        wait_for(f"{lines} in the log", has, timeout=NOTICED, every=0.5)

    def wraps(self, kind: Kind) -> None:
        """Wait until Encrypt gives records of this kind."""
        wait_for(f"{kind!r}", lambda: self.encrypts() == kind, timeout=NOTICED)

    def fresh(self) -> None:
        """Restart the API server, and delete all Secrets of other seeds."""
        self.api.restart()
        self.api.request("DELETE", NAMESPACE)

    def state(self) -> str:
        """Return the plugin's state."""
        return self.plugin.server()["state"]

    def turns(self, state: str) -> None:
        """Wait until the plugin is in this state."""
        wait_for(state, lambda: self.state() == state, timeout=NOTICED)

    def says(self, *parts: str) -> None:
        """Wait until the API server's check fails with a message of these parts."""

        def said() -> bool:
            status, body = self.api.get(READYZ)
            return status == 500 and all(part in body.decode() for part in parts)

        wait_for(f"{parts} in readyz", said, timeout=NOTICED, every=0.5)

    def encrypts(self) -> Kind | grpc.StatusCode:
        """Return the kind of record that Encrypt makes, or the code if it fails."""
        try:
            return kind_of(self.plugin.encrypt(DEK).ciphertext)
        except grpc.RpcError as error:
            return error.code()

    def decrypts(self, record: bytes) -> bytes | grpc.StatusCode:
        """Return the plaintext of a record, or the code if Decrypt fails."""
        key_id = Record.decode(record).header.key_id
        try:
            return self.plugin.decrypt(record, key_id)
        except grpc.RpcError as error:
            return error.code()

    def writes(self) -> str:
        """Create a Secret; return its name."""
        self._written += 1
        name = f"written-{self._written}"
        body = secret(name, f"text of {name}")
        status, answer = self.api.request("POST", NAMESPACE, body)
        assert 201 == status, answer.decode()
        return name

    def stored(self, name: str) -> Kind:
        """Return the kind of record of that Secret's seed."""
        value = self._world.stored(name)
        return kind_of(parse_v2(value).encrypted_dek_source)

    def reads(self, name: str) -> str:
        """Return the text of that Secret, or the error if it cannot be read."""
        status, body = self.api.get(f"{NAMESPACE}/{name}")
        return self._world.read(name) if status == 200 else body.decode()

    def lists(self) -> set[str]:
        """Return the Secrets that the API server lists, none if it fails."""
        status, body = self.api.get(NAMESPACE)
        if status != 200:
            return set()
        return {item["metadata"]["name"] for item in json.loads(body)["items"]}

    def recovers(self, *names: str) -> None:
        """Wait until plugin and API server are well by themselves, and read these."""
        self.turns("ok")
        assert "ok" == self.plugin.healthz()
        wait_for("readyz", lambda: self.api.get("/readyz")[0] == 200, timeout=NOTICED)
        wait_for("list", lambda: self.lists() >= set(names), timeout=NOTICED)
        assert [f"text of {name}" for name in names] == list(map(self.reads, names))


def kind_of(record: bytes) -> Kind:
    """Return the kind of a record."""
    return Record.decode(record).header.kind
