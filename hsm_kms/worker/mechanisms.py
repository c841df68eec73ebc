"""Wrap and unwrap under a key: AES-GCM with three sources of the IV, or CBC with HMAC.

1. The IV always ends up beside the ciphertext, whichever side generated it, so one way
   of reading fits all records.
2. Nothing is ever wrapped without integrity.
3. An IV generated here is hedged, see `make_iv`: a random source that repeats itself,
   as in a virtual machine resumed twice from one snapshot, does not repeat an IV for
   another plaintext.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from hsm_kms.ipc.ckr import Cause, Fault
from hsm_kms.ipc.values import Cipher, Mechanism
from hsm_kms.worker import cryptoki
from hsm_kms.worker.errors import WorkerError

if TYPE_CHECKING:
    from hsm_kms.worker.cryptoki import Cryptoki

GCM_IV_BYTES: Final = 12
GCM_TAG_BYTES: Final = 16
BLOCK_BYTES: Final = 16
MAC_BYTES: Final = 32
APPENDED_IV_BYTES: Final = (12, 16)  # Luna in FIPS mode: 16, newer firmware 12
_SLACK_BYTES: Final = 64  # room for a token that appends its IV, or pads
_RANDOM_BYTES: Final = 32
# Its key is of this process alone, and is made as the process starts.
_HEDGE: Final = hmac.new(os.urandom(_RANDOM_BYTES), digestmod="sha256")


class Keyed(NamedTuple):  # not a dataclass: each worker would load `inspect` for it
    """Name a key on a session.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        key: CK_OBJECT_HANDLE of the AES key.
        mac: CK_OBJECT_HANDLE of its HMAC partner, for `Cipher.CBC_HMAC`.
    """

    c: Cryptoki
    session: int
    key: int
    mac: int | None = None


def encrypt(
    on: Keyed, mechanism: Mechanism, aad: bytes, plaintext: bytes
) -> tuple[bytes, bytes]:
    """Encrypt with integrity.

    Args:
        on: Session and key.
        mechanism: The mechanism, which also says who generates the IV.
        aad: Additional authenticated data, not empty.
        plaintext: 1 byte or more.

    Returns:
        The IV, and the ciphertext with its tag (GCM 16 bytes, HMAC 32).

    Raises:
        WorkerError: The token failed, or returned what this mechanism cannot return.
    """
    match mechanism:
        case Mechanism.GCM_CALLER:
            return _gcm_caller(on, aad, plaintext)
        case Mechanism.GCM_TOKEN:
            return gcm_token(on, aad, plaintext)
        case Mechanism.GCM_APPENDED:
            return gcm_appended(on, aad, plaintext)
        case Mechanism.CBC_HMAC:
            return _cbc_hmac_encrypt(on, aad, plaintext)


def decrypt(on: Keyed, cipher: Cipher, aad: bytes, iv: bytes, data: bytes) -> bytes:
    """Decrypt what any mechanism of this cipher encrypted.

    Args:
        on: Session and key.
        cipher: The cipher that the record names.
        aad: The same bytes as at encryption.
        iv: The record's IV.
        data: Ciphertext and tag.

    Raises:
        WorkerError: The token found the ciphertext not authentic, in whatever words,
            or failed.
    """
    if cipher is Cipher.CBC_HMAC:
        return _cbc_hmac_decrypt(on, aad, iv, data)
    parameter = cryptoki.gcm(bytearray(iv), aad, GCM_TAG_BYTES)
    out = on.c.decrypt(on.session, on.key, parameter, data, len(data) + _SLACK_BYTES)
    if len(out) != len(data) - GCM_TAG_BYTES:
        raise _impossible("C_Decrypt")
    return out


def gcm(on: Keyed, aad: bytes, plaintext: bytes, iv: bytearray) -> tuple[bytes, bytes]:
    """Encrypt with AES-GCM (NIST SP 800-38D), and check nothing, for the probe.

    Args:
        on: Session and key.
        aad: Additional authenticated data, not empty.
        plaintext: 1 byte or more.
        iv: IV for the token, which may write into it; empty for a NULL IV.

    Returns:
        The content of `iv` afterwards, and the raw output.
    """
    parameter = cryptoki.gcm(iv, aad, GCM_TAG_BYTES)
    most = len(plaintext) + GCM_TAG_BYTES + _SLACK_BYTES
    out = on.c.encrypt(on.session, on.key, parameter, plaintext, most)
    return bytes(iv), out


def make_iv(aad: bytes, plaintext: bytes, length: int) -> bytes:
    """Return a new IV for one encryption: HMAC-SHA-256 over random bytes and the input.

    The key of the HMAC is random and of this process alone. If the random source
    repeats itself, two inputs still get two IVs; docs/spec.md, "IVs made by hsm-kms".

    Args:
        aad: Additional authenticated data of the encryption.
        plaintext: The plaintext.
        length: Length of the IV, in bytes: at most 32.
    """
    # The length of the AAD divides it from the plaintext: no two inputs look alike.
    parts = (os.urandom(_RANDOM_BYTES), len(aad).to_bytes(8, "big"), aad, plaintext)
    hedged = _HEDGE.copy()
    hedged.update(b"".join(parts))
    return hedged.digest()[:length]


def _gcm_caller(on: Keyed, aad: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    sent = make_iv(aad, plaintext, GCM_IV_BYTES)
    after, out = gcm(on, aad, plaintext, bytearray(sent))
    if after != sent or len(out) != len(plaintext) + GCM_TAG_BYTES:
        raise _impossible("C_Encrypt")
    return sent, out


def gcm_token(on: Keyed, aad: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """Encrypt; the token writes its IV over 12 zero bytes (CloudHSM, nShield)."""
    iv, out = gcm(on, aad, plaintext, bytearray(GCM_IV_BYTES))
    if not any(iv) or len(out) != len(plaintext) + GCM_TAG_BYTES:
        raise _impossible("C_Encrypt")
    return iv, out


def gcm_appended(on: Keyed, aad: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """Encrypt; the token appends its IV after the tag (Luna in FIPS mode)."""
    _, out = gcm(on, aad, plaintext, bytearray())
    length = len(out) - len(plaintext) - GCM_TAG_BYTES
    if length not in APPENDED_IV_BYTES:
        raise _impossible("C_Encrypt")
    return out[-length:], out[:-length]


def _cbc_hmac_encrypt(on: Keyed, aad: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """Encrypt with AES-CBC and PKCS #7 padding, then HMAC-SHA-256 over everything."""
    iv = make_iv(aad, plaintext, BLOCK_BYTES)
    most = len(plaintext) + BLOCK_BYTES + _SLACK_BYTES
    out = on.c.encrypt(on.session, on.key, cryptoki.cbc_pad(iv), plaintext, most)
    if len(out) != len(plaintext) // BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES:
        raise _impossible("C_Encrypt")
    tag = on.c.sign_hmac(on.session, _mac_key(on), _authenticated(aad, iv, out))
    if len(tag) != MAC_BYTES:
        raise _impossible("C_Sign")
    return iv, out + tag


def _cbc_hmac_decrypt(on: Keyed, aad: bytes, iv: bytes, data: bytes) -> bytes:
    """Verify the HMAC, then decrypt: only an authentic ciphertext is decrypted."""
    ciphertext, tag = data[:-MAC_BYTES], data[-MAC_BYTES:]
    authenticated = _authenticated(aad, iv, ciphertext)
    on.c.verify_hmac(on.session, _mac_key(on), authenticated, tag)
    most = len(ciphertext) + _SLACK_BYTES
    out = on.c.decrypt(on.session, on.key, cryptoki.cbc_pad(iv), ciphertext, most)
    if not 0 < len(ciphertext) - len(out) <= BLOCK_BYTES:
        raise _impossible("C_Decrypt")
    return out


def _authenticated(aad: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    """Return the bytes that the MAC covers, see docs/spec.md, AES-CBC with HMAC."""
    return aad + bytes([len(iv)]) + iv + ciphertext


def _mac_key(on: Keyed) -> int:
    if on.mac is None:
        raise WorkerError(Cause.NO_KEY, "the AES key has no HMAC key beside it")
    return on.mac


def encrypt_block(c: Cryptoki, session: int, key: int, block: bytes) -> bytes:
    """Encrypt one AES block by CKM_AES_ECB, or by CKM_AES_CBC with a zero IV.

    Args:
        c: The module.
        session: CK_SESSION_HANDLE.
        key: CK_OBJECT_HANDLE.
        block: 16 bytes.

    Raises:
        WorkerError: The token failed, or offers neither; then the second refusal.
    """
    try:
        out = _one_block(c, session, key, cryptoki.ecb(), block)
    except WorkerError as error:
        if error.cause != Fault.OPERATOR:
            raise
        out = _one_block(c, session, key, cryptoki.cbc_zero_iv(), block)
    return out


def _one_block(
    c: Cryptoki, session: int, key: int, parameter: cryptoki.Parameter, block: bytes
) -> bytes:
    out = c.encrypt(session, key, parameter, block, BLOCK_BYTES + _SLACK_BYTES)
    if len(out) != BLOCK_BYTES:
        raise WorkerError(
            Cause.NOT_PROVEN, "the token encrypted one block to another length"
        )
    return out


def _impossible(function: str) -> WorkerError:
    return WorkerError(
        Cause.NOT_PROVEN,
        f"{function} returned a length or an IV that the mechanism cannot return",
        function=function,
    )
