"""What the server and a worker say to each other; `datagrams` has the bytes.

Byte strings that may be key material carry no repr.
"""

from __future__ import annotations

import msgspec

from hsm_kms.ipc.values import (  # noqa: TC001 - msgspec reads it
    Cipher,
    KeyRef,
    KeySeen,
    Mechanism,
    TokenSeen,
)


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
    """List the AES keys on the token, page by page.

    Args:
        label: Their CKA_LABEL; None: any.
        ids: Their CKA_IDs; empty: any.
        prefix: `label` is only how theirs begins.
        partners: List HMAC keys instead, by labels and CKA_IDs of their own.
        skip: 0 looks anew; else `KeyPage.next` of the page before.
        limit: How many objects to look at.
    """

    label: str | None
    ids: tuple[bytes, ...] = ()
    prefix: bool = False
    partners: bool = False
    skip: int = 0
    limit: int = 100


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


class Relabel(_Message, frozen=True, kw_only=True):
    """C_SetAttributeValue of CKA_LABEL.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key, as they are.
        label: CKA_LABEL of the AES key, as it shall be.
        partner: Change the HMAC key that belongs to `ref`, not the AES key.
    """

    ref: KeyRef
    label: str
    partner: bool = False


class Destroy(_Message, frozen=True, kw_only=True):
    """C_DestroyObject of an AES key, or of the HMAC key beside one.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key.
        partner: Destroy the HMAC key that belongs to `ref`, not the AES key.
    """

    ref: KeyRef
    partner: bool = False


class Fingerprint(_Message, frozen=True, kw_only=True):
    """Encrypt one constant 16-byte block under the key (AES-ECB).

    Args:
        ref: The key.
        block: 16 bytes.
        paired: Also make the HMAC of the block under its partner.
        beside: The partner is the one that belongs to this key; None: to `ref`.
    """

    ref: KeyRef
    block: bytes
    paired: bool = False
    beside: KeyRef | None = None


class Probe(_Message, frozen=True, kw_only=True):
    """Find out by doing it which of these mechanisms works with the key."""

    ref: KeyRef
    paired: bool
    wanted: tuple[Mechanism, ...]


class RunCanary(_Message, frozen=True, kw_only=True):
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


class GenerateRandom(_Message, frozen=True, kw_only=True):
    """C_GenerateRandom of this many bytes."""

    count: int


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


class KeyPage(_Message, frozen=True, kw_only=True):
    """Answer to `FindKeys` and `GenerateKey`.

    Args:
        keys: The keys.
        next: Where the next page begins; None: there is none.
    """

    keys: tuple[KeySeen, ...]
    next: int | None = None


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


class Random(_Secret, frozen=True, kw_only=True):
    """Answer to `GenerateRandom`."""

    data: bytes


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
    | Relabel
    | Destroy
    | Fingerprint
    | Probe
    | RunCanary
    | Encrypt
    | Decrypt
    | GenerateRandom
    | Leave
)
Reply = (
    Started
    | Tokens
    | Done
    | KeyPage
    | Block
    | Probed
    | Encrypted
    | Decrypted
    | Random
    | Failure
)
