"""A server that rarely calls the token by itself, and records new to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.system.conformance.clients import stopped, workers_of
from tests.system.conformance.inside import metrics, token_calls
from tests.system.conformance.replica import Replica

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Calls, Shim

KEK = bytes(range(32))
SLOW = 0.3  # seconds


class Cold:
    """A server on the shim, and another node with the same KEK.

    Args:
        plugin: The server.
        shim: Counts the calls of the server, and makes them slow.

    Attributes:
        replica: The other node.
    """

    def __init__(self, plugin: Plugin, shim: Shim) -> None:
        self.plugin = plugin
        self.replica = Replica(KEK)
        self._shim = shim

    def calls(self) -> int:
        """Return how many Decrypts were sent to the token for clients: no canary."""
        return token_calls(self.plugin, "decrypt")

    def joined(self) -> int:
        """Return how many Decrypts have joined the token call of another one."""
        return int(metrics(self.plugin)["hsm_kms_decrypts_joined_total"])

    def all_calls(self) -> dict[str, Calls]:
        """Return the calls into the module, canaries included, by function."""
        return self._shim.counts()

    def slow(self) -> None:
        """Let each C_Decrypt take `SLOW` seconds."""
        self._shim.set(f"C_Decrypt sleep={round(1000 * SLOW)}")

    def fast(self) -> None:
        """Undo `slow`."""
        self._shim.clear()

    def hanging(self) -> AbstractContextManager[None]:
        """Let no call on the token come back within the block."""
        return stopped(workers_of(self.plugin))
