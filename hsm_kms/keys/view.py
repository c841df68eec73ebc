"""Give each API the keyring that it must use.

1. KMS v1, which announces nothing, uses the keyring as last read.
2. KMS v2 encrypts under the key_id that Status gave last.
3. A request never waits for the token, with two exceptions: right after the start
   until the keys are read, and once when it names a key that is not held.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from hsm_kms.errors import HsmKmsError, WorkerLostError

if TYPE_CHECKING:
    from hsm_kms.keys.keyring import Keyring
    from hsm_kms.keys.node_keyring import NodeKeyring


class Inspector(Protocol):
    """Read the keys of the token in the background; the health monitor does."""

    @property
    def error(self) -> HsmKmsError | None:
        """Return why the latest worker could not start; None if no start failed."""

    async def first_news(self) -> None:
        """Wait until the keys have been read, or a worker could not start."""

    async def look_again(self, until: float) -> None:
        """Read the keys once more, or wait for a read that is under way.

        Args:
            until: Longest wait, in the loop's time.
        """


class KeyView(ABC):
    """Serve the keyring of this node to the requests of one API.

    Args:
        node_keyring: The keys of this node.
        inspector: Reads them.
    """

    def __init__(self, node_keyring: NodeKeyring, inspector: Inspector) -> None:
        self._node_keyring = node_keyring
        self._inspector = inspector

    @property
    @abstractmethod
    def ring(self) -> Keyring | None:
        """Return the keyring for requests; None until the keys have been read."""

    async def ring_soon(self, until: float) -> Keyring:
        """Return the keyring; right after the start, wait for the first one.

        Args:
            until: Longest wait, in the loop's time.

        Raises:
            HsmKmsError: The token has not been reached.
        """
        if self.ring is None and self._inspector.error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._inspector.first_news()
        ring = self.ring
        if ring is None:
            error = self._inspector.error
            error = error or WorkerLostError("the token has not been reached yet")
            raise error.again()
        return ring

    async def ring_after_look(self, until: float) -> Keyring:
        """Return the keyring after a look for keys that have just been made.

        Args:
            until: Longest wait, in the loop's time.

        Raises:
            HsmKmsError: The token has not been reached.
        """
        await self._inspector.look_again(until)
        return await self.ring_soon(until)


class CurrentKeys(KeyView):
    """Encrypt under the current key as last read, as v1 does."""

    @property
    def ring(self) -> Keyring | None:
        """Return the keyring as last read; None until then."""
        return self._node_keyring.ring


class AnnouncedKeys(KeyView):
    """Encrypt under the key that Status gave last, as v2 must."""

    @property
    def ring(self) -> Keyring | None:
        """Return the keyring with the announced key as current; None until read."""
        return self._node_keyring.announced_ring
