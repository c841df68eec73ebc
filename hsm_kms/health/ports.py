"""Define what health needs to know of workers and local KEKs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.errors import HsmKmsError


class TokenWorkers(Protocol):
    """Serve the token; `token.workers.Workers` does."""

    @property
    def ready(self) -> Sequence[object]:
        """Return the workers that serve."""

    @property
    def last_error(self) -> HsmKmsError | None:
        """Return why the latest worker could not start; None if it did."""

    @property
    def failed_at(self) -> float:
        """Return when that was, in the loop's time."""


class Substitute(Protocol):
    """Encrypt in place of the token; `wrapping.standby.Standby` does."""

    @property
    def encrypts_without_token(self) -> bool:
        """Return True if Encrypt would go on without the token."""

    @property
    def spent(self) -> HsmKmsError | None:
        """Return why the token must not wrap under the current key, or None."""
