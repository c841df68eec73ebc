"""What the server and a worker say to each other over one SOCK_SEQPACKET pair.

A datagram is an 8-byte big-endian number and a msgpack body; the answer repeats
the number. Byte strings that may be key material carry no repr.
"""

from __future__ import annotations

from typing import Final

import msgspec

from hsm_kms.worker.values import (  # noqa: TC001 - msgspec reads it
    Cipher,
    KeyRef,
    KeySeen,
    Mechanism,
    TokenSeen,
)

MAX_MESSAGE_BYTES: Final = 160 * 1024
_NUMBER_BYTES: Final = 8


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class _Secret(_Message, frozen=True, kw_only=True):
    """A message whose fields must not be printed."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


# Requests


class Configure(_Message, frozen=True, kw_only=True):
    """First message on the control pair: load the module, find the token.

    Args:
        module: Absolute path of the PKCS#11 module.
        init_args: Text for CK_C_INITIALIZE_ARGS.pReserved, or None.
        token_label: CKA-style label of the token, or None.
        token_serial: Its serial number, or None.
        slot: Its slot id, or None.
        manufacturer: Its manufacturer, or None.
        model: Its model, or None. All that is given must match; with none of these
            five no token is chosen.
        library: What the module must say of itself, by RFC 7512's attribute names.
        read_write: Open read-write sessions.
        needs_login: A session that is not logged in cannot see the keys.
    """

    module: str
    init_args: str | None = None
    token_label: str | None = None
    token_serial: str | None = None
    slot: int | None = None
    manufacturer: str | None = None
    model: str | None = None
    library: dict[str, str] = {}
    read_write: bool = False
    needs_login: bool = True


class ListTokens(_Message, frozen=True, kw_only=True):
    """Describe every slot with a token."""


class Login(_Message, frozen=True, kw_only=True):
    """C_Login for the whole process, with the PIN the worker reads from a file.

    Args:
        pin_file: Path of the file that holds the PIN.
        identity: (st_dev, st_ino, st_size, st_mtime_ns, st_ctime_ns) the file must
            have before and after reading; None: any.
        user_type: CK_USER_TYPE.
        refuse_low: Do not try while the token reports few tries left.
    """

    pin_file: str
    identity: tuple[int, int, int, int, int] | None
    user_type: int
    refuse_low: bool


class OpenSession(_Message, frozen=True, kw_only=True):
    """C_OpenSession on this pair's own thread."""


class FindKeys(_Message, frozen=True, kw_only=True):
    """List the AES keys on the token.

    Args:
        label: Their CKA_LABEL; None: any.
        ids: Their CKA_IDs; empty: any.
    """

    label: str | None
    ids: tuple[bytes, ...] = ()


class GenerateKey(_Message, frozen=True, kw_only=True):
    """C_GenerateKey of an AES-256 KEK, or of the HMAC key beside one.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key.
        partner: Make the HMAC key that belongs to `ref`, not the AES key.
        private: Only a session that is logged in can see it.
    """

    ref: KeyRef
    partner: bool = False
    private: bool = True


class Fingerprint(_Message, frozen=True, kw_only=True):
    """Encrypt one constant 16-byte block under the key (AES-ECB).

    Args:
        ref: The key.
        block: 16 bytes.
        paired: Also make the HMAC of the block under its partner.
    """

    ref: KeyRef
    block: bytes
    paired: bool = False


class Probe(_Message, frozen=True, kw_only=True):
    """Find out by doing it which of these mechanisms works with the key."""

    ref: KeyRef
    paired: bool
    wanted: tuple[Mechanism, ...]


class Prove(_Message, frozen=True, kw_only=True):
    """Wrap and unwrap a canary; the result stays in the worker as known good."""

    ref: KeyRef
    mechanism: Mechanism
    aad: bytes


class Encrypt(_Secret, frozen=True, kw_only=True):
    """Wrap under the key."""

    ref: KeyRef
    mechanism: Mechanism
    aad: bytes
    plaintext: bytes


class Decrypt(_Message, frozen=True, kw_only=True):
    """The inverse of `Encrypt`; `ciphertext` ends with the tag."""

    ref: KeyRef
    cipher: Cipher
    aad: bytes
    iv: bytes
    ciphertext: bytes


class Leave(_Message, frozen=True, kw_only=True):
    """C_CloseAllSessions and exit."""


# Replies


class Started(_Message, frozen=True, kw_only=True):
    """The module is loaded; `token` is None when no selector was given."""

    os_locking: bool
    library: str
    token: TokenSeen | None


class Tokens(_Message, frozen=True, kw_only=True):
    """Answer to `ListTokens`."""

    tokens: tuple[TokenSeen, ...]


class Done(_Message, frozen=True, kw_only=True):
    """It worked and there is nothing to say."""


class Keys(_Message, frozen=True, kw_only=True):
    """Answer to `FindKeys` and `GenerateKey`."""

    keys: tuple[KeySeen, ...]


class Block(_Secret, frozen=True, kw_only=True):
    """Answer to `Fingerprint`."""

    block: bytes
    mac: bytes = b""


class Probed(_Message, frozen=True, kw_only=True):
    """Answer to `Probe`."""

    mechanism: Mechanism


class Encrypted(_Message, frozen=True, kw_only=True):
    """Answer to `Encrypt`; `ciphertext` ends with the tag."""

    iv: bytes
    ciphertext: bytes


class Decrypted(_Secret, frozen=True, kw_only=True):
    """Answer to `Decrypt`: authenticated plaintext."""

    plaintext: bytes


class Failure(_Message, frozen=True, kw_only=True):
    """It did not work.

    Args:
        cause: A `ckr.Fault`, or one of `worker.failures.Cause`.
        detail: A sentence without secrets: paths, names, the loader's message.
        function: The PKCS#11 function, or "".
        rv: Its CK_RV, or None.
    """

    cause: str
    detail: str = ""
    function: str = ""
    rv: int | None = None


Request = (
    Configure
    | ListTokens
    | Login
    | OpenSession
    | FindKeys
    | GenerateKey
    | Fingerprint
    | Probe
    | Prove
    | Encrypt
    | Decrypt
    | Leave
)
Reply = (
    Started | Tokens | Done | Keys | Block | Probed | Encrypted | Decrypted | Failure
)

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack(number: int, message: Request | Reply) -> bytes:
    """One datagram."""
    return number.to_bytes(_NUMBER_BYTES, "big") + _encoder.encode(message)


def unpack_request(datagram: memoryview) -> tuple[int, Request]:
    """The number and the request; raises msgspec.MsgspecError on anything else."""
    number = int.from_bytes(datagram[:_NUMBER_BYTES], "big")
    return number, _requests.decode(datagram[_NUMBER_BYTES:])


def unpack_reply(datagram: memoryview) -> tuple[int, Reply]:
    """The number and the reply; raises msgspec.MsgspecError on anything else."""
    number = int.from_bytes(datagram[:_NUMBER_BYTES], "big")
    return number, _replies.decode(datagram[_NUMBER_BYTES:])
