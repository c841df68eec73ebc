"""The one table from error class to gRPC status code and sentence.

The sentences are all that a client ever learns, for they end in answers of the
API server to its own clients. Causes are in the log and in Status.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from grpc import StatusCode

from hsm_kms import errors

if TYPE_CHECKING:
    from collections.abc import Mapping


class Refusal(NamedTuple):
    """What the client is told."""

    code: StatusCode
    sentence: str


INTERNAL: Final = Refusal(StatusCode.INTERNAL, "internal error")

_NOT_READY: Final = Refusal(
    StatusCode.UNAVAILABLE, "the token is not ready: see hsm-kms check"
)
_NO_KEY: Final = Refusal(
    StatusCode.UNAVAILABLE, "no key on the token can be used: see hsm-kms check"
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
            "the key this was sealed under is not held here",
        ),
        errors.KeyRetiredError: Refusal(
            StatusCode.FAILED_PRECONDITION, "the key this was sealed under is retired"
        ),
        errors.KeyReusedError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the current key_id was used before: see hsm-kms check",
        ),
        errors.KeyLostError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the current key is gone or rolled back: see hsm-kms status",
        ),
        errors.KeyUnsuitableError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the current key breaks the key policy: see hsm-kms check",
        ),
        errors.NonceBudgetError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the current key has wrapped too often: rotate it",
        ),
        errors.LocalRefusedError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "records by a local KEK are refused by the configuration",
        ),
        errors.PinRejectedError: Refusal(
            StatusCode.FAILED_PRECONDITION,
            "the token refused the PIN: see hsm-kms status",
        ),
        errors.PinUnavailableError: _NOT_READY,
        errors.PinSettlingError: _NOT_READY,
        errors.TokenError: _NOT_READY,
        errors.TokenAbsentError: _NOT_READY,
        errors.WorkerLostError: _NOT_READY,
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
        errors.PoolClosedError: Refusal(
            StatusCode.UNAVAILABLE, "the server is shutting down"
        ),
    }
)


def refusal(error: BaseException) -> Refusal:
    """Return what a client is told about an error; of its text, nothing."""
    return REFUSALS.get(type(error), INTERNAL)
