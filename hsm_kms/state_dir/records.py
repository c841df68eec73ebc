"""What the state files hold; strict, versioned, and never a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from msgspec import Meta, Struct

from hsm_kms.ipc.values import Mechanism  # noqa: TC001 - msgspec reads it

if TYPE_CHECKING:
    import os

MAX_PIN_RECORDS: Final = 16
MAX_FORMER_KEYS: Final = 1000  # one a month for 80 years
MAX_RETIRED_KEYS: Final = 256
MAX_KEY_WORK: Final = 8
MAX_NONCE_KEYS: Final = 1000
MAX_NONCES: Final = 2**32
_KeyId = Annotated[str, Meta(pattern=r"^[a-z2-7]{26}(\.[a-z0-9]{1,16})?\Z")]
_Fingerprint = Annotated[str, Meta(pattern=r"^[a-z2-7]{26}\Z")]
_Hex = Annotated[str, Meta(pattern=r"^([0-9a-f]{2}){0,4096}\Z")]
_Text = Annotated[str, Meta(max_length=4096)]
_Count = Annotated[int, Meta(ge=0)]
_Tries = Annotated[int, Meta(ge=0, le=1000)]
_Nonces = Annotated[int, Meta(ge=0, le=MAX_NONCES)]


class LastKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key this node last announced.

    Args:
        key_id: As in Status.
        cka_id: Its CKA_ID in lower-case hexadecimal.
        token_serial: Serial number of the token it was found on.
        label: Its CKA_LABEL.
        since: When it became current, ISO 8601.
    """

    key_id: _KeyId
    cka_id: _Hex
    token_serial: _Text
    label: _Text
    since: _Text


class FormerKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key_id that this node announced before the last one.

    Args:
        key_id: As in Status.
        since: When it became current, ISO 8601.
        until: When another one did.
    """

    key_id: _KeyId
    since: _Text
    until: _Text


class PinIdentity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tells one content of one PIN file from another without reading it.

    Args:
        device: st_dev.
        inode: st_ino.
        size: st_size in bytes.
        mtime_ns: Time of the last change of its content, in nanoseconds.
        ctime_ns: Time of the last change of any kind, in nanoseconds.
    """

    device: _Count
    inode: _Count
    size: _Count
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def from_stat(cls, found: os.stat_result) -> Self:
        """The identity of the file that this stat result describes."""
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
        )


class PinRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known about the PIN in one file.

    Args:
        identity: Which content of which file this is about.
        verdict: "corrupt" is never stored: it says that the file which holds
            the verdicts cannot be believed, so that this PIN must not be tried.
        tries: C_Login calls begun since it was last untried.
        function: The PKCS#11 function that rejected it.
        rv: Its CK_RV.
    """

    identity: PinIdentity
    verdict: Literal["untried", "proven", "rejected", "corrupt"] = "untried"
    tries: _Tries = 0
    function: _Text = ""
    rv: _Count | None = None


class RetiredKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that is retired by `keys.retired`, its token keeping the label.

    Args:
        key_id: As `keys list` shows it.
        since: When `keys retire` was run, ISO 8601.
    """

    key_id: _KeyId
    since: _Text


class KeyWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Work on the two objects of a pair that may have been broken off between them.

    Args:
        work: What is being done.
        key_id: As `keys list` shows it; None while it is being made.
        cka_id: CKA_ID of the AES key in lower-case hexadecimal.
        label: Its CKA_LABEL.
        began: When, ISO 8601.
    """

    work: Literal["make", "cancel", "destroy"]
    key_id: _KeyId | None
    cka_id: _Hex
    label: _Text
    began: _Text


class LastKeyFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """last-key.json."""

    version: Literal[1]
    last_key: LastKey
    former: Annotated[tuple[FormerKey, ...], Meta(max_length=MAX_FORMER_KEYS)] = ()


class PinFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """pin.json."""

    version: Literal[1]
    pins: Annotated[tuple[PinRecord, ...], Meta(max_length=MAX_PIN_RECORDS)]


class FrozenMechanism(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this token was found to wrap.

    Args:
        mechanism: What the probe found.
        token_serial: Serial number of the token it was found on.
    """

    mechanism: Mechanism
    token_serial: _Text


class FrozenMechanismFile(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """mechanism.json."""

    version: Literal[1] = 1
    frozen: FrozenMechanism


class KeyWorkFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """keys.json."""

    version: Literal[1] = 1
    begun: Annotated[tuple[KeyWork, ...], Meta(max_length=MAX_KEY_WORK)] = ()
    retired: Annotated[tuple[RetiredKey, ...], Meta(max_length=MAX_RETIRED_KEYS)] = ()


class NoncesFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """nonces.json.

    Args:
        counts: How often this node has wrapped with an IV of its own, by the KEK's
            fingerprint; what is reserved ahead counts as done.
        others: What counts for a KEK that is not among them.
    """

    version: Literal[1]
    counts: Annotated[dict[_Fingerprint, _Nonces], Meta(max_length=MAX_NONCE_KEYS)]
    others: _Nonces
