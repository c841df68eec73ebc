"""Define every error of hsm-kms, split by what its caller does next.

1. Modules raise only subclasses of `HsmKmsError` for other modules to handle; any
   other exception is a bug.
2. An error that ends an RPC derives from exactly one of `RequestRefusedError`,
   `PreconditionError` and `UnavailableError`. `api.codes` maps each concrete class
   to its one gRPC status code.
3. An error that is kept is raised as a copy, see `HsmKmsError.again`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self


class HsmKmsError(Exception):
    """Root of all errors of hsm-kms; never raised itself.

    Args:
        message: One line for logs and the CLI. It may name configured paths, PKCS#11
            functions and CKR names, but never a PIN or key bytes.
        hint: How to fix the cause, for the CLI and the log; None if nothing can be
            done.
        function: The PKCS#11 function that failed; "" if none was called.
        rv: CK_RV of that function; None if there is none.
    """

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        function: str = "",
        rv: int | None = None,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.function = function
        self.rv = rv

    @property
    def sentence(self) -> str:
        """Return message and hint in one line."""
        return f"{self}; {self.hint}" if self.hint else str(self)

    def again(self) -> Self:
        """Return an equal error that has not been raised yet.

        Raising one error object for many callers would add the frames of each caller
        to its traceback, and keep alive everything that these frames hold.
        """
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        return copy


class ConfigError(HsmKmsError):
    """Raised when the configuration, or an option, has faults; `faults` lists them."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class CommandInterruptedError(HsmKmsError):
    """Raised when a signal ended a command, its cause, to say how far it came."""


class SocketError(HsmKmsError):
    """Raised when the KMS socket cannot be used: live owner, wrong file, bad path."""


class WrongUserError(HsmKmsError):
    """Raised when a command runs as another user than the server of this node."""


# The request itself is the cause: repeating it fails again.


class RequestRefusedError(HsmKmsError):
    """Base of the errors of which the request itself is the cause."""


class RequestError(RequestRefusedError):
    """Raised when a field of the request is empty, too large or unknown."""


class CiphertextError(RequestRefusedError):
    """Raised when a ciphertext is malformed or not authentic, for any reason."""


OTHER_SCOPE: Final = (
    "compare `scope` in the configuration with that of the node that encrypted this; "
    "if they are equal, the value was damaged"
)
"""Hint for a ciphertext that is not authentic."""


# An operator must change something: repeating the request fails until then.


class PreconditionError(HsmKmsError):
    """Base of the errors that last until an operator changes something."""


class UnknownKeyIdError(PreconditionError):
    """Raised when a record was made under a KEK that this node does not hold."""


class KeyRetiredError(UnknownKeyIdError):
    """Raised when a record was made under a KEK that is retired."""


class KeyForeignError(UnknownKeyIdError):
    """Raised when a key is on the token, but nothing says that it may decrypt."""


class KeyUnsuitableError(PreconditionError):
    """Raised when a key violates the key policy: size, extractable, missing flags."""


class KeyLostError(PreconditionError):
    """Raised when the key last current on this node is gone or rolled back."""


class KeyReplacedError(PreconditionError):
    """Raised when another key has the names of a key that this node holds."""


class KeyReusedError(PreconditionError):
    """Raised when a former current key would become current under the same key_id."""


class NonceBudgetError(PreconditionError):
    """Raised when this node has wrapped under the key as often as is safe."""


class LocalRefusedError(PreconditionError):
    """Raised when a local KEK made the record, and `accept_local` is false."""


class PinRejectedError(PreconditionError):
    """Raised when the token rejected the PIN: only a changed file is tried again."""


# The same request can succeed later; until then a local KEK can wrap.


class UnavailableError(HsmKmsError):
    """Base of the errors that can pass: try again later, or use a local KEK."""


class TokenError(UnavailableError):
    """Raised when the token failed, and no other class is more precise."""


class UndecidedError(UnavailableError):
    """Raised when a decryption failed, because of the token or the ciphertext."""


class TokenAbsentError(UnavailableError):
    """Raised when the module, slot or token does not exist, or the device is gone."""


class WorkerLostError(UnavailableError):
    """Raised when the worker process that held the session is gone."""


class WorkerUnkillableError(UnavailableError):
    """Raised when no worker may start, because too many others cannot be killed."""


class SessionLostError(UnavailableError):
    """Raised when a session cannot be used any more; never leaves `hsm_kms.token`."""


class TokenTimeoutError(UnavailableError):
    """Raised when the token did not answer before the request's deadline."""


class PinUnavailableError(UnavailableError):
    """Raised when there is no PIN, or the PIN cannot be tried safely."""


class PinSettlingError(PinUnavailableError):
    """Raised while the PIN file is new; it is used once it has stopped changing."""


class KeyNotFoundError(UnavailableError):
    """Raised when the token holds no AES key with the configured label."""


class KeyAmbiguousError(UnavailableError):
    """Raised when several keys match, and the configuration does not choose one."""


class KeyNotActiveError(UnavailableError):
    """Raised when no key on the token is active yet."""


class MechanismError(UnavailableError):
    """Raised when the token does not offer the mechanism, or not with this key."""


class PoolTimeoutError(UnavailableError):
    """Raised when no session became free in time."""


class AuditError(UnavailableError):
    """Raised when a record of the audit stream cannot be written."""


class PoolClosedError(UnavailableError):
    """Raised when the server is shutting down."""
