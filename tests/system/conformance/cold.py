"""A server that makes no call of its own, and what it has never seen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.harness.wait import wait_for
from tests.system.conformance.replica import Replica

if TYPE_CHECKING:
    from tests.harness.plugin import Plugin
    from tests.harness.shim.driver import Calls, Shim

KEK = bytes(range(32))
SLOW = 0.3  # seconds, of a token that takes its time


class Cold:
    """The server on the shim, and another node with the same KEK.

    Args:
        plugin: The server.
        shim: Counts its calls, and makes them slow.

    Attributes:
        replica: The other node.
    """

    def __init__(self, plugin: Plugin, shim: Shim) -> None:
        self.plugin = plugin
        self.replica = Replica(KEK)
        self._shim = shim

    def calls(self) -> int:
        """How often C_Decrypt was called."""
        return self._shim.calls("C_Decrypt")

    def all_calls(self) -> dict[str, Calls]:
        """The same of every function."""
        return self._shim.counts()

    def wait_quiet(self) -> None:
        """Wait until nothing is under way."""
        seen: list[int] = []

        def quiet() -> bool:
            seen.append(self.calls())
            time.sleep(0.05)
            return len(seen) > 4 and {seen[-1]} == set(seen[-4:])

        wait_for(quiet)

    def slow(self, seconds: float = SLOW) -> None:
        """Let each C_Decrypt take so long."""
        self._shim.set(f"C_Decrypt sleep={round(1000 * seconds)}")

    def fast(self) -> None:
        """Let it be as fast as it is."""
        self._shim.clear()
