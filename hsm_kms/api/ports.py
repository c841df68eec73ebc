"""What the services stand on: something that wraps, something that knows our health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hsm_kms.health.state import HealthState
    from hsm_kms.wrapping.wrapper import Sealed, Unsealed


class Wrapper(Protocol):
    """Seals DEKs and opens them again. Deadlines are in the loop's own seconds."""

    async def wrap(self, plaintext: bytes, *, deadline: float | None) -> Sealed:
        """Seal a DEK under the current key.

        Args:
            plaintext: The DEK, 1 to 1024 bytes.
            deadline: When the client stops waiting, in seconds of the loop's
                clock; None when it waits for ever.

        Raises:
            HsmKmsError: It cannot be done; the class says what comes next.
        """
        ...

    async def unwrap(
        self, ciphertext: bytes, *, key_id: str | None, deadline: float | None
    ) -> Unsealed:
        """Open a record.

        Args:
            ciphertext: What `wrap` made, or anything at all.
            key_id: What the client says beside it; None in v1, which says nothing.
            deadline: As for `wrap`.

        Raises:
            CiphertextError: It is not one of ours, or it was changed.
            HsmKmsError: As for `wrap`.
        """
        ...


class HealthSource(Protocol):
    """Knows in microseconds how we are."""

    def announce(self) -> HealthState:
        """Return the state that a Status answer is made of, and stand by it."""
        ...

    def look(self) -> HealthState:
        """Return the same to one who only looks: nothing follows from it."""
        ...
