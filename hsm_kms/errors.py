"""Every error of hsm-kms, split by what the caller does next.

Only `HsmKmsError` subclasses cross a module's border on purpose; any other
exception is a bug. `api.codes` maps each class to its one gRPC status code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class HsmKmsError(Exception):
    """Root of the family, never raised itself.

    Args:
        message: One sentence for logs and the CLI. It may name configured
            paths, PKCS#11 functions and CKR names; never a PIN or key bytes.
        hint: What to do about it, for the CLI and the Status text.
    """

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def sentence(self) -> str:
        """Cause and cure in one line."""
        return f"{self}; {self.hint}" if self.hint else str(self)


class ConfigError(HsmKmsError):
    """The configuration file cannot be used; carries every fault found in it."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class SocketError(HsmKmsError):
    """The KMS socket cannot be taken: a live owner, a wrong file, a bad path."""


class RequestError(HsmKmsError):
    """The shape of the request is wrong: empty, too long, wrong version."""


class CiphertextError(HsmKmsError):
    """Malformed or not authentic: one class and one sentence for all causes."""


class UnknownKeyIdError(HsmKmsError):
    """The record was made under a KEK that is not held here."""


class KeyRetiredError(UnknownKeyIdError):
    """The record was made under a KEK that is retired."""


class TokenError(HsmKmsError):
    """The token could not do it.

    Args:
        message: See `HsmKmsError`.
        function: The PKCS#11 function that failed, "" where none was reached.
        rv: Its CK_RV, or None.
        hint: See `HsmKmsError`.
    """

    def __init__(
        self,
        message: str = "",
        *,
        function: str = "",
        rv: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.function = function
        self.rv = rv


class TokenAbsentError(TokenError):
    """No such module, slot or token, or the device is gone."""


class WorkerLostError(TokenError):
    """The worker process that held the session is gone."""


class SessionLostError(TokenError):
    """The session is of no use any more; never leaves `hsm_kms.token`."""


class TokenTimeoutError(TokenError):
    """The token did not answer within the time this request had."""


class PinRejectedError(TokenError):
    """The token refused the PIN; it is not tried again until the PIN changes."""


class PinUnavailableError(TokenError):
    """There is no PIN to try, or it cannot be tried safely."""


class PinSettlingError(PinUnavailableError):
    """The PIN file was written just now; it is tried when it has been still."""


class KeyNotFoundError(TokenError):
    """No AES key with the configured label is on the token."""


class KeyAmbiguousError(TokenError):
    """More than one key answers, and nothing says which is meant."""


class KeyUnsuitableError(TokenError):
    """The key breaks the policy: size, extractable, missing flags."""


class MechanismError(TokenError):
    """The token does not offer the mechanism, or not with this key."""


class KeyLostError(HsmKmsError):
    """The key last current on this node is gone or rolled back."""


class KeyReusedError(HsmKmsError):
    """A key_id that was current before would be again."""


class KeyNotActiveError(TokenError):
    """Every key on the token is to become active later."""


class NonceBudgetError(HsmKmsError):
    """This node has wrapped under the key as often as is safe."""


class LocalRefusedError(HsmKmsError):
    """The record was made by a local KEK, and none such is to be read."""


class PoolTimeoutError(HsmKmsError):
    """No session became free in time."""


class PoolClosedError(HsmKmsError):
    """The server is shutting down."""
