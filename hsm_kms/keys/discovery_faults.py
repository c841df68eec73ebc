"""Say why a key cannot be identified, or why no mechanism works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm_kms.errors import HsmKmsError, KeyUnsuitableError, MechanismError
from hsm_kms.ipc.ckr import Fault
from hsm_kms.token.errors import error_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.ipc.values import KeyRef, Mechanism, Problem


def unidentified(
    ref: KeyRef, problem: Problem | None, found: Sequence[str]
) -> HsmKmsError:
    """Return why a key, or a pair, cannot be identified.

    Args:
        ref: CKA_LABEL and CKA_ID.
        problem: What the worker reported.
        found: How the key violates the policy.
    """
    what = (
        f"the key labelled {ref.label!r} with CKA_ID {ref.cka_id.hex() or '(empty)'} "
        "cannot be identified"
    )
    if problem is None:
        return MechanismError(what)
    if found and problem.cause == Fault.OPERATOR:
        return KeyUnsuitableError(
            f"{what}: {', '.join(found)}",
            hint="make a key with `hsm-kms keys generate`, and name it in keys.current",
        )
    error = error_from(problem)
    return type(error)(
        f"{what}: {error}", hint=error.hint, function=error.function, rv=error.rv
    )


def mechanism_changed(held: Mechanism, error: MechanismError) -> MechanismError:
    """Return the error of a token that no longer wraps as it always has.

    Args:
        held: How it has wrapped.
        error: Why that does not work any more.
    """
    return MechanismError(
        f"this token has always wrapped with {held}, and now it does not: {error}",
        function=error.function,
        rv=error.rv,
        hint="find out what changed on the token; to accept it, name the mechanism "
        "in keys.mechanism and keys.gcm_iv",
    )
