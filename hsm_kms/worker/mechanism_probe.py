"""Which mechanism a token really does with this key, found out by doing it.

Mechanism lists and flags are hints at best. Plaintext and AAD of the probe are
constant and its output stays here, so that even a token which uses one IV twice
gives nothing away.

1. A manner of making IVs counts only when two wraps differ, the result decrypts, and
   one flipped bit is refused.
2. Only "not supported" moves on to the next manner. A device error ends the probe: it
   says nothing about the token.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from hsm_kms.ipc import ckr
from hsm_kms.ipc.ckr import Cause
from hsm_kms.ipc.values import Cipher, Mechanism
from hsm_kms.worker import mechanisms
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from hsm_kms.worker.mechanisms import Keyed

_AAD: Final = b"hsm-kms/probe/1"
_PLAINTEXT: Final = b"hsm-kms mechanism probe, not key"
_UNSUPPORTED: Final = frozenset(
    ckr.BY_NAME[name]
    for name in (
        "CKR_MECHANISM_INVALID",
        "CKR_MECHANISM_PARAM_INVALID",
        "CKR_ARGUMENTS_BAD",
        "CKR_FUNCTION_NOT_SUPPORTED",
        "CKR_KEY_FUNCTION_NOT_PERMITTED",
        "CKR_KEY_TYPE_INCONSISTENT",
    )
)


def probe(on: Keyed, wanted: tuple[Mechanism, ...]) -> Mechanism:
    """The first of the wanted mechanisms that works.

    Args:
        on: Session and keys.
        wanted: In order of preference.

    Raises:
        WorkerError: None works; or the token failed, or is not to be trusted.
    """
    refused: list[str] = []
    for mechanism in wanted:
        if mechanism is Mechanism.CBC_HMAC and on.mac is None:
            refused.append(f"{mechanism}: there is no HMAC key beside it")
            continue
        try:
            _try(on, mechanism)
        except WorkerError as error:
            if error.rv not in _UNSUPPORTED and error.cause != Cause.NOT_PROVEN:
                raise
            refused.append(f"{mechanism}: {error.detail}")
            continue
        return mechanism
    raise WorkerError(
        ckr.Fault.OPERATOR, f"no mechanism works with this key: {'; '.join(refused)}"
    )


def _try(on: Keyed, mechanism: Mechanism) -> None:
    if mechanism is Mechanism.GCM_CALLER:
        _require_own_iv(on)
    first = mechanisms.encrypt(on, mechanism, _AAD, _PLAINTEXT)
    second = mechanisms.encrypt(on, mechanism, _AAD, _PLAINTEXT)
    if first[0] == second[0] or first[1] == second[1]:
        raise WorkerError(Cause.NOT_PROVEN, "the same IV was used twice")
    _require_integrity(on, mechanism.cipher, *first)


def _require_own_iv(on: Keyed) -> None:
    """The token uses the very IV it was given, and no other."""
    iv = os.urandom(mechanisms.GCM_IV_BYTES)
    once = mechanisms.gcm(on, _AAD, _PLAINTEXT, bytearray(iv))
    again = mechanisms.gcm(on, _AAD, _PLAINTEXT, bytearray(iv))
    if once != again or once[0] != iv:
        raise WorkerError(Cause.NOT_PROVEN, "the token does not use the IV it is given")


def _require_integrity(on: Keyed, cipher: Cipher, iv: bytes, data: bytes) -> None:
    if mechanisms.decrypt(on, cipher, _AAD, iv, data) != _PLAINTEXT:
        raise WorkerError(Cause.NOT_PROVEN, "it does not decrypt what it encrypted")
    flipped = bytes([data[0] ^ 1]) + data[1:]
    try:
        mechanisms.decrypt(on, cipher, _AAD, iv, flipped)
    except WorkerError:
        # Refused, whatever this token calls it; a dead session shows right here.
        if mechanisms.decrypt(on, cipher, _AAD, iv, data) == _PLAINTEXT:
            return
    raise WorkerError(Cause.NOT_PROVEN, "a flipped bit was not refused")
