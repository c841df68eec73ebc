"""Find the mechanism that a token can wrap with under a key, by using it.

Mechanism lists and flags are hints at best. Plaintext and AAD of the probe are
constant and its output never leaves this module, so even a token that uses one IV
twice reveals nothing.

1. A mechanism counts only if two wraps differ, the result decrypts, and a flipped bit
   is rejected.
2. Only an answer in `ckr.UNSUPPORTED` or a wrong result moves on to the next
   mechanism. Any other error ends the probe: it says nothing about the mechanism.
"""

from __future__ import annotations

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


def probe(on: Keyed, wanted: tuple[Mechanism, ...]) -> Mechanism:
    """Return the first of the wanted mechanisms that works.

    Args:
        on: Session and keys.
        wanted: Mechanisms in order of preference.

    Raises:
        WorkerError: No mechanism works, or the token failed otherwise.
    """
    refused: list[str] = []
    for mechanism in wanted:
        if mechanism is Mechanism.CBC_HMAC and on.mac is None:
            refused.append(f"{mechanism}: the AES key has no HMAC key beside it")
            continue
        try:
            _try(on, mechanism)
        except WorkerError as error:
            if error.rv not in ckr.UNSUPPORTED and error.cause != Cause.NOT_PROVEN:
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
        raise WorkerError(Cause.NOT_PROVEN, "the token used the same IV twice")
    _require_integrity(on, mechanism.cipher, *first)


def _require_own_iv(on: Keyed) -> None:
    """Refuse a token that encrypts with another IV than the one it was given.

    Raises:
        WorkerError: The token failed, or the IV had no effect on the output.
    """
    iv = mechanisms.make_iv(_AAD, _PLAINTEXT, mechanisms.GCM_IV_BYTES)
    once = mechanisms.gcm(on, _AAD, _PLAINTEXT, bytearray(iv))
    again = mechanisms.gcm(on, _AAD, _PLAINTEXT, bytearray(iv))
    if once != again or once[0] != iv:
        raise WorkerError(Cause.NOT_PROVEN, "the token does not use the IV it is given")


def _require_integrity(on: Keyed, cipher: Cipher, iv: bytes, data: bytes) -> None:
    if mechanisms.decrypt(on, cipher, _AAD, iv, data) != _PLAINTEXT:
        raise WorkerError(
            Cause.NOT_PROVEN, "the token does not decrypt what it encrypted"
        )
    flipped = bytes([data[0] ^ 1]) + data[1:]
    try:
        mechanisms.decrypt(on, cipher, _AAD, iv, flipped)
    except WorkerError:
        # Rejected, by whatever error. A second decryption tells that the session
        # works, so it was the flipped bit that the token rejected.
        if mechanisms.decrypt(on, cipher, _AAD, iv, data) == _PLAINTEXT:
            return
    raise WorkerError(
        Cause.NOT_PROVEN, "the token accepted a ciphertext with a flipped bit"
    )
