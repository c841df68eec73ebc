"""Wrap and unwrap a canary under a key, and decrypt one that was kept."""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Final

from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.worker import identity, mechanisms
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from hsm_kms.ipc.messages import RunCanary
    from hsm_kms.ipc.values import KeptCanary
    from hsm_kms.worker.mechanisms import Keyed

CANARY_BYTES: Final = 32


def run(on: Keyed, request: RunCanary) -> tuple[bytes, bytes]:
    """Return a canary that the key wrapped and unwrapped: IV, ciphertext with tag.

    Raises:
        WorkerError: The token failed, or decrypted the canary to other bytes, or the
            key does not decrypt the canary that was kept.
    """
    how = request.mechanism
    plaintext = os.urandom(CANARY_BYTES)
    iv, data = mechanisms.encrypt(on, how, request.aad, plaintext)
    again = mechanisms.decrypt(on, how.cipher, request.aad, iv, data)
    if not hmac.compare_digest(plaintext, again):
        raise WorkerError(
            Cause.NOT_PROVEN, "the token decrypted its own canary to other bytes"
        )
    if request.kept is not None and not _opens(on, request.kept):
        # A token that fails now fails for its own canary too, and that is raised.
        mechanisms.decrypt(on, how.cipher, request.aad, iv, data)
        if not _opens(on, request.kept):
            raise identity.other_key(
                request.ref, "it does not decrypt the canary kept from before"
            )
    return iv, data


def _opens(on: Keyed, kept: KeptCanary) -> bool:
    """Return True if the key decrypts the canary that was kept.

    Raises:
        WorkerError: The session failed, which says nothing about the key.
    """
    try:
        mechanisms.decrypt(on, kept.cipher, kept.aad, kept.iv, kept.ciphertext)
    except WorkerError as error:
        if error.cause in {Fault.SESSION, Fault.LOGIN}:
            raise
        return False
    return True
