"""Map each error class to its gRPC status code and its fixed message.

A client gets nothing but the message, because the API server passes it on to its own
clients. Causes are in the log and in Status.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from grpc import StatusCode

from hsm_kms import errors

if TYPE_CHECKING:
    from collections.abc import Mapping


class Refusal(NamedTuple):
    """Hold the status code and the message that answer a request."""

    code: StatusCode
    sentence: str


INTERNAL: Final = Refusal(StatusCode.INTERNAL, "internal error")

_NOT_READY: Final = Refusal(
    StatusCode.UNAVAILABLE, "the token is not ready: see hsm-kms check"
)
_NO_KEY: Final = Refusal(
    StatusCode.UNAVAILABLE, "the token has no usable key: see hsm-kms check"
)

REFUSALS: Final[Mapping[type[BaseException], Refusal]] = MappingProxyType(
    {
        errors.RequestError: Refusal(
            StatusCode.INVALID_ARGUMENT,
            "the request has an empty, oversized or wrong field",
        ),
        errors.CiphertextError: Refusal(
            StatusCode.INVALID_ARGUMENT,
            "the ciphertext is malformed or not authentic",
        ),
        errors.UnknownKeyIdError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "this node does not hold the key that encrypted this",
        ),
        errors.KeyRetiredError: Refusal(
            StatusCode.FAILED_PRECONDITION, "the key that encrypted this is retired"
        ),
        errors.KeyForeignError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the key that encrypted this was not generated on the token: "
            "see hsm-kms check",
        ),
        errors.KeyReusedError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "a former key_id would be current again: see hsm-kms check",
        ),
        errors.KeyLostError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the current key is gone or rolled back: see hsm-kms status",
        ),
        errors.KeyReplacedError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "another key has the names of the key: see hsm-kms status",
        ),
        errors.KeyUnsuitableError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the current key violates the key policy: see hsm-kms check",
        ),
        errors.NonceBudgetError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the current key has encrypted too often: rotate it",
        ),
        errors.LocalRefusedError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the configuration refuses data encrypted with local KEKs",
        ),
        errors.PinRejectedError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the token rejected the PIN: see hsm-kms status",
        ),
        errors.PinUnavailableError: _NOT_READY,
        errors.PinSettlingError: _NOT_READY,
        errors.TokenError: _NOT_READY,
        errors.UndecidedError: _NOT_READY,
        errors.TokenAbsentError: _NOT_READY,
        errors.WorkerLostError: _NOT_READY,
        errors.WorkerUnkillableError: _NOT_READY,
        errors.SessionLostError: _NOT_READY,
        errors.TokenTimeoutError: Refusal(
            StatusCode.UNAVAILABLE, "the token did not answer in time"
        ),
        errors.KeyNotFoundError: _NO_KEY,
        errors.KeyAmbiguousError: _NO_KEY,
        errors.KeyNotActiveError: _NO_KEY,
        errors.MechanismError: _NO_KEY,
        errors.PoolTimeoutError: Refusal(
            StatusCode.RESOURCE_EXHAUSTED, "no token session became free in time"
        ),
        errors.AuditError: Refusal(
            StatusCode.UNAVAILABLE,
            "the audit record cannot be written: see hsm-kms status",
        ),
        errors.PoolClosedError: Refusal(
            StatusCode.UNAVAILABLE, "the server is shutting down"
        ),
    }
)


def refusal(error: BaseException) -> Refusal:
    """Return code and message for an error; neither depends on the error's text."""
    return REFUSALS.get(type(error), INTERNAL)
