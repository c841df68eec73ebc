"""Define what the services need: one object that wraps, one that knows the health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hsm_kms.health.state import HealthState
    from hsm_kms.wrapping.wrapper import Sealed, Unsealed


class Wrapper(Protocol):
    """Encrypt and decrypt DEKs. Deadlines are in the event loop's time."""

    async def wrap(self, plaintext: bytes, *, deadline: float | None) -> Sealed:
        """Encrypt a DEK under the current key.

        Args:
            plaintext: The DEK, 1 to 1024 bytes.
            deadline: When the client stops waiting; None if it sets no deadline.

        Raises:
            HsmKmsError: The DEK cannot be encrypted; see the bases in `errors`.
        """
        ...

    async def unwrap(
        self, ciphertext: bytes, *, key_id: str | None, deadline: float | None
    ) -> Unsealed:
        """Decrypt a record.

        Args:
            ciphertext: A record that `wrap` made, or any other bytes.
            key_id: The key_id that the client sends; None in v1, which has none.
            deadline: As for `wrap`.

        Raises:
            CiphertextError: The bytes are no record, or were changed.
            HsmKmsError: As for `wrap`.
        """
        ...


class HealthSource(Protocol):
    """Tell the health of this node, without waiting for the token."""

    def announce(self) -> HealthState:
        """Return the state for Status; v2 encrypts under its key_id from now on."""
        ...

    def look(self) -> HealthState:
        """Return the same state for a client that only observes; change nothing."""
        ...
