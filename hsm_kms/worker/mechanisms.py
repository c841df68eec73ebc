"""How a key wraps and unwraps: AES-256-GCM with an IV made by the caller."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from hsm_kms.worker import cryptoki
from hsm_kms.worker.failures import Cause, WorkerError

if TYPE_CHECKING:
    from hsm_kms.worker.cryptoki import Cryptoki

IV_BYTES: Final = 12
TAG_BYTES: Final = 16
BLOCK_BYTES: Final = 16
_SLACK_BYTES: Final = 64  # room for a token that appends its IV, or pads


def gcm_encrypt(
    c: Cryptoki, session: int, key: int, aad: bytes, plaintext: bytes
) -> tuple[bytes, bytes]:
    """AES-GCM (NIST SP 800-38D) with a fresh random 96-bit IV.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        key: CK_OBJECT_HANDLE of the KEK.
        aad: Additional authenticated data, not empty.
        plaintext: 1 byte or more.

    Returns:
        The IV (12 bytes), and the ciphertext with its 16-byte tag.

    Raises:
        WorkerError: The token refused, changed the IV, or returned a length that
            AES-GCM cannot have.
    """
    iv = bytearray(os.urandom(IV_BYTES))
    sent = bytes(iv)
    parameter = cryptoki.gcm(iv, aad, TAG_BYTES)
    most = len(plaintext) + TAG_BYTES + _SLACK_BYTES
    out = c.encrypt(session, key, parameter, plaintext, most)
    if bytes(iv) != sent or len(out) != len(plaintext) + TAG_BYTES:
        raise WorkerError(
            Cause.NOT_PROVEN,
            "C_Encrypt made its own IV or returned an impossible length",
            function="C_Encrypt",
        )
    return sent, out


def gcm_decrypt(
    c: Cryptoki, session: int, key: int, aad: bytes, iv: bytes, ciphertext: bytes
) -> bytes:
    """The inverse of `gcm_encrypt`.

    Raises:
        WorkerError: Not authentic as this token says it, or the token failed.
    """
    parameter = cryptoki.gcm(bytearray(iv), aad, TAG_BYTES)
    most = len(ciphertext) + _SLACK_BYTES
    out = c.decrypt(session, key, parameter, ciphertext, most)
    if len(out) != len(ciphertext) - TAG_BYTES:
        raise WorkerError(
            Cause.NOT_PROVEN,
            "C_Decrypt returned an impossible length",
            function="C_Decrypt",
        )
    return out


def encrypt_block(c: Cryptoki, session: int, key: int, block: bytes) -> bytes:
    """One AES block by CKM_AES_ECB, or by CKM_AES_CBC with a zero IV.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        key: CK_OBJECT_HANDLE.
        block: 16 bytes.

    Raises:
        WorkerError: The token offers neither; the second refusal is raised.
    """
    try:
        out = _one_block(c, session, key, cryptoki.ecb(), block)
    except WorkerError as error:
        if error.cause != "operator":
            raise
        out = _one_block(c, session, key, cryptoki.cbc_zero_iv(), block)
    return out


def _one_block(
    c: Cryptoki, session: int, key: int, parameter: cryptoki._Parameter, block: bytes
) -> bytes:
    out = c.encrypt(session, key, parameter, block, BLOCK_BYTES + _SLACK_BYTES)
    if len(out) != BLOCK_BYTES:
        raise WorkerError(Cause.NOT_PROVEN, "one block did not come back as one block")
    return out
