"""Define every error of hsm-kms, split by what its caller does next.

1. Only subclasses of `HsmKmsError` cross a module's border on purpose; any other
   exception is a bug.
2. An error that ends an RPC derives from exactly one of `RequestRefusedError`,
   `PreconditionError` and `UnavailableError`. `api.codes` maps each concrete class
   to its one gRPC status code.
3. An error that is kept is raised as a copy, see `HsmKmsError.again`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self


class HsmKmsError(Exception):
    """Root of the family; never raised itself.

    Args:
        message: One sentence for logs and the CLI. It may name configured
            paths, PKCS#11 functions and CKR names; never a PIN or key bytes.
        hint: How to fix the cause, for the CLI and the log; None if nothing can be
            done.
        function: The PKCS#11 function that failed; "" if none was called.
        rv: Its CK_RV; None if the function returned none.
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
        """Return cause and cure in one line."""
        return f"{self}; {self.hint}" if self.hint else str(self)

    def again(self) -> Self:
        """Return an equal error that has not been raised yet.

        Raising one object for many callers would add the frames of each to its
        traceback, and keep alive all that these frames hold.
        """
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        return copy


class ConfigError(HsmKmsError):
    """The configuration file cannot be used; carries every fault found in it."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class SocketError(HsmKmsError):
    """The KMS socket cannot be used: a live owner, a wrong file, a bad path."""


# The request itself is at fault: repeating it is no use.


class RequestRefusedError(HsmKmsError):
    """Base of the errors of which the request itself is the cause."""


class RequestError(RequestRefusedError):
    """The shape of the request is wrong: an empty, oversized or unknown field."""


class CiphertextError(RequestRefusedError):
    """The ciphertext is malformed or not authentic: one sentence for all causes."""


# Somebody must change something: repeating the request is no use until then.


class PreconditionError(HsmKmsError):
    """Base of the errors that last until an operator changes something."""


class UnknownKeyIdError(PreconditionError):
    """The record was made under a KEK that this node does not hold."""


class KeyRetiredError(UnknownKeyIdError):
    """The record was made under a KEK that is retired."""


class KeyUnsuitableError(PreconditionError):
    """The key violates the key policy: size, extractable, missing flags."""


class KeyLostError(PreconditionError):
    """The key that was last current on this node is gone or rolled back."""


class KeyReusedError(PreconditionError):
    """A former current key would become current again under the same key_id."""


class NonceBudgetError(PreconditionError):
    """This node has wrapped under the key as often as is safe."""


class LocalRefusedError(PreconditionError):
    """A local KEK made the record, and the configuration forbids to read such."""


class PinRejectedError(PreconditionError):
    """The token rejected the PIN, which is not tried again until its file changes."""


# The same request may succeed later; meanwhile a local KEK can stand in.


class UnavailableError(HsmKmsError):
    """Base of the errors that may pass: try again later, or use a local KEK."""


class TokenError(UnavailableError):
    """The token failed, and no other class says more."""


class TokenAbsentError(UnavailableError):
    """The module, slot or token does not exist, or the device is gone."""


class WorkerLostError(UnavailableError):
    """The worker process that held the session is gone."""


class SessionLostError(UnavailableError):
    """The session cannot be used any more; never leaves `hsm_kms.token`."""


class TokenTimeoutError(UnavailableError):
    """The token did not answer within the time that this request had."""


class PinUnavailableError(UnavailableError):
    """There is no PIN to try, or the PIN cannot be tried safely."""


class PinSettlingError(PinUnavailableError):
    """The PIN file was written just now; it is used once it has stopped changing."""


class KeyNotFoundError(UnavailableError):
    """The token holds no AES key with the configured label."""


class KeyAmbiguousError(UnavailableError):
    """Several keys match, and the configuration does not say which is meant."""


class KeyNotActiveError(UnavailableError):
    """Every key on the token becomes active later."""


class MechanismError(UnavailableError):
    """The token does not offer the mechanism, or not with this key."""


class PoolTimeoutError(UnavailableError):
    """No session became free in time."""


class PoolClosedError(UnavailableError):
    """The server is shutting down."""
