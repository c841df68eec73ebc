"""Define the requests and replies between server and worker.

`framing` packs them into datagrams. Messages whose fields may be key material print
nothing but their name.
"""

from __future__ import annotations

import msgspec

from hsm_kms.ipc.values import (
    Cipher,
    Identify,
    KeptCanary,
    KeyRef,
    KeySeen,
    Mechanism,
    Problem,
    TokenSeen,
)


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class _Secret(_Message, frozen=True, kw_only=True):
    """Base of the messages whose fields must not be printed."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


# Requests


class Configure(_Message, frozen=True, kw_only=True):
    """Load the module and find the token: the first message on the control pair.

    Args:
        module: Absolute path of the PKCS#11 module.
        init_args: Text for CK_C_INITIALIZE_ARGS.pReserved, or None.
        token_label: Label of the token, or None.
        token_serial: Serial number of the token, or None.
        slot: Slot id of the token, or None.
        manufacturer: Manufacturer of the token, or None.
        model: Model of the token, or None. All given values must match; if all five
            are None, no token is chosen.
        library: Values that C_GetInfo must report, by RFC 7512's attribute names.
        read_write: Open read-write sessions.
        needs_login: A session that is not logged in cannot see the keys.
        by_cka_id: A fingerprint names the CKA_ID of a key, not its material.
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
    by_cka_id: bool = False


class ListTokens(_Message, frozen=True, kw_only=True):
    """Describe every slot with a token."""


class Login(_Message, frozen=True, kw_only=True):
    """C_Login for the whole process, with the PIN the worker reads from a file.

    Args:
        pin_file: Path of the file that holds the PIN.
        identity: (st_dev, st_ino, st_size, st_mtime_ns, st_ctime_ns) the file must
            have before and after reading; None for any file.
        user_type: CK_USER_TYPE.
        refuse_low: Do not try while the token reports that few tries are left.
    """

    pin_file: str
    identity: tuple[int, int, int, int, int] | None
    user_type: int
    refuse_low: bool


class OpenSession(_Message, frozen=True, kw_only=True):
    """C_OpenSession for this pair's session."""


class FindKeys(_Message, frozen=True, kw_only=True):
    """List and identify the AES keys on the token, page by page.

    Attributes and fingerprint of a key are read from one handle, which this request
    has found.

    Args:
        label: CKA_LABEL of the keys; None for any.
        ids: CKA_IDs of the keys; empty for any.
        prefix: `label` is a prefix of the CKA_LABEL.
        partners: List HMAC keys instead, under their own labels and CKA_IDs; they are
            not identified.
        partner_label: The HMAC key of a pair may also be the partner of an AES key
            with this CKA_LABEL; None for the label of the AES key alone.
        first: The key to identify before all others, if it is among them.
        identify: For which keys a fingerprint is computed.
        skip: None for a new search; else `KeyPage.next` of the previous page.
        limit: Largest number of objects to describe.
    """

    label: str | None
    ids: tuple[bytes, ...] = ()
    prefix: bool = False
    partners: bool = False
    partner_label: str | None = None
    first: KeyRef | None = None
    identify: Identify = Identify.ALWAYS
    skip: int | None = None
    limit: int = 100


class GenerateKey(_Message, frozen=True, kw_only=True):
    """C_GenerateKey of an AES-256 KEK, or of the HMAC key beside one.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key.
        partner: Generate the HMAC key that belongs to `ref`, not the AES key.
        private: Set CKA_PRIVATE: only a session that is logged in can see the key.
    """

    ref: KeyRef
    partner: bool = False
    private: bool = True


class GenerateSessionKey(_Message, frozen=True, kw_only=True):
    """C_GenerateKey of an AES-256 key that this session alone uses, and never stores.

    The reply is the key with its fingerprint, as `KeyPage`. The token destroys the key
    when the session closes.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key.
        paired: Generate the HMAC key beside it, too; the fingerprint is of the pair.
        private: Set CKA_PRIVATE.
    """

    ref: KeyRef
    paired: bool = False
    private: bool = True


class Relabel(_Message, frozen=True, kw_only=True):
    """C_SetAttributeValue of CKA_LABEL.

    Args:
        ref: Present CKA_LABEL and CKA_ID of the AES key.
        label: New CKA_LABEL of the AES key.
        partner: Change the HMAC key that belongs to `ref`, not the AES key.
        fingerprint: Fingerprint of the AES key alone; None if it has none.
    """

    ref: KeyRef
    label: str
    partner: bool = False
    fingerprint: str | None = None


class Destroy(_Message, frozen=True, kw_only=True):
    """C_DestroyObject of an AES key, or of the HMAC key beside one.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key.
        partner: Destroy the HMAC key that belongs to `ref`, not the AES key.
        fingerprint: Fingerprint of the AES key alone; None if it has none.
    """

    ref: KeyRef
    partner: bool = False
    fingerprint: str | None = None


class Probe(_Message, frozen=True, kw_only=True):
    """Find the first of these mechanisms that works with the key, by using it.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key.
        fingerprint: Fingerprint that the key, or the pair, must have.
        paired: Use the AES key together with its HMAC key.
        wanted: Mechanisms in order of preference.
    """

    ref: KeyRef
    fingerprint: str
    paired: bool
    wanted: tuple[Mechanism, ...]


class CheckKey(_Message, frozen=True, kw_only=True):
    """Have the session show that it is logged in and sees a key; do not use the key.

    The key is used once if its fingerprint was not computed on this session yet.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key.
        fingerprint: Fingerprint that the key must have.
        cipher: What the key is used for.
    """

    ref: KeyRef
    fingerprint: str
    cipher: Cipher


class RunCanary(_Message, frozen=True, kw_only=True):
    """Wrap and unwrap a canary, and keep it in the worker as a known good record.

    The reply is the canary, as `Encrypted`.

    Args:
        ref: CKA_LABEL and CKA_ID of the AES key.
        fingerprint: Fingerprint that the key must have.
        mechanism: How to wrap.
        aad: Additional authenticated data, not empty.
        kept: An earlier canary under this key, which must decrypt as well; None if
            there is none.
    """

    ref: KeyRef
    fingerprint: str
    mechanism: Mechanism
    aad: bytes
    kept: KeptCanary | None = None


class Encrypt(_Secret, frozen=True, kw_only=True):
    """Encrypt `plaintext` under the key that has this fingerprint, and no other."""

    ref: KeyRef
    fingerprint: str
    mechanism: Mechanism
    aad: bytes
    plaintext: bytes


class Decrypt(_Message, frozen=True, kw_only=True):
    """Decrypt what `Encrypt` returned; `ciphertext` ends with the tag."""

    ref: KeyRef
    fingerprint: str
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
    """Report that the module is loaded; `token` is None without a selector."""

    os_locking: bool
    library: str
    token: TokenSeen | None


class Tokens(_Message, frozen=True, kw_only=True):
    """Reply to `ListTokens`."""

    tokens: tuple[TokenSeen, ...]


class Done(_Message, frozen=True, kw_only=True):
    """Report that the request succeeded and has no result."""


class KeyPage(_Message, frozen=True, kw_only=True):
    """Reply to `FindKeys`, `GenerateKey` and `GenerateSessionKey`.

    Args:
        keys: The keys.
        next: Where the next page begins; None if this is the last. A page has no key
            if the token is still being searched.
    """

    keys: tuple[KeySeen, ...]
    next: int | None = None


class Probed(_Message, frozen=True, kw_only=True):
    """Reply to `Probe`."""

    mechanism: Mechanism


class Encrypted(_Message, frozen=True, kw_only=True):
    """Reply to `Encrypt` and `RunCanary`; `ciphertext` ends with the tag."""

    iv: bytes
    ciphertext: bytes


class Decrypted(_Secret, frozen=True, kw_only=True):
    """Reply to `Decrypt`: authenticated plaintext."""

    plaintext: bytes


class Random(_Secret, frozen=True, kw_only=True):
    """Reply to `GenerateRandom`."""

    data: bytes


class Failure(Problem, frozen=True, kw_only=True, tag=True):
    """Report that the request failed."""


Request = (
    Configure
    | ListTokens
    | Login
    | OpenSession
    | FindKeys
    | GenerateKey
    | GenerateSessionKey
    | Relabel
    | Destroy
    | Probe
    | CheckKey
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
    | Probed
    | Encrypted
    | Decrypted
    | Random
    | Failure
)
