"""Define what the state files hold: strict, versioned, and without any secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from msgspec import Meta, Struct
from msgspec.structs import replace

from hsm_kms.ipc.values import KeptCanary, Mechanism  # noqa: TC001 - msgspec reads it

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
    """Describe the key that this node announced last.

    Args:
        key_id: As in Status.
        cka_id: CKA_ID of the key in lower-case hexadecimal.
        token_serial: Serial number of the token that holds the key.
        label: CKA_LABEL of the key.
        since: When the key became current, ISO 8601.
        born_here: True if the token generated the key and has never let it out; None
            if that is not known.
        canary: A canary wrapped under the key, if only its CKA_ID names it; else None.
    """

    key_id: _KeyId
    cka_id: _Hex
    token_serial: _Text
    label: _Text
    since: _Text
    born_here: bool | None = None
    canary: KeptCanary | None = None


class FormerKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a key that this node announced before the last key.

    Args:
        key_id: As in Status.
        since: When the key became current, ISO 8601.
        until: When the next key became current, ISO 8601.
    """

    key_id: _KeyId
    since: _Text
    until: _Text


class PinIdentity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Identify one content of one PIN file, without the content.

    Args:
        device: st_dev.
        inode: st_ino.
        size: st_size in bytes.
        mtime_ns: st_mtime of the file, in nanoseconds.
        ctime_ns: st_ctime of the file, in nanoseconds.
    """

    device: _Count
    inode: _Count
    size: _Count
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def from_stat(cls, found: os.stat_result) -> Self:
        """Return the identity of the file that `found` describes."""
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
        )


class PinRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold what is known about the PIN in one file.

    Args:
        identity: Identity of the PIN file and its content.
        credential: Path of the file if it is a credential of systemd, which is a new
            file at each start of the service; "" if it is not.
        verdict: Result of the tries so far. "corrupt" is never stored: it means that
            pin.json is corrupt, so the PIN must not be tried.
        tries: C_Login calls begun since the PIN was last untried.
        inconclusive: C_Login calls that failed with an error which does not say that
            the PIN is wrong.
        inconclusive_at: When the last of these failed, in seconds since the Unix epoch.
        function: The PKCS#11 function that rejected the PIN or failed last; "" if none
            did.
        rv: CK_RV of that function; None if it returned none.
    """

    identity: PinIdentity
    credential: _Text = ""
    verdict: Literal["untried", "proven", "rejected", "corrupt"] = "untried"
    tries: _Tries = 0
    inconclusive: _Count = 0
    inconclusive_at: float = 0.0
    function: _Text = ""
    rv: _Count | None = None

    def for_new_file(self, identity: PinIdentity) -> Self:
        """Return what a credential's earlier file says about its new file.

        Nobody can see if the content is another one. So what failed is not tried again,
        and what was proven must be proven again.

        Args:
            identity: Identity of the new file.
        """
        if self.verdict == "proven":
            return type(self)(identity=identity, credential=self.credential)
        return replace(self, identity=identity)


class RetiredKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a key that `keys.retired` retires while its CKA_LABEL stays.

    Args:
        key_id: As `keys list` shows it.
        since: When `keys retire` was run, ISO 8601.
    """

    key_id: _KeyId
    since: _Text


class KeyWork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Record work on an AES key and its HMAC key that may be interrupted half-way.

    Args:
        work: The command: make (`keys generate`, `rotate`), cancel or destroy.
        key_id: As `keys list` shows it; None while the key is being generated.
        cka_id: CKA_ID of the AES key in lower-case hexadecimal.
        label: CKA_LABEL of the AES key.
        began: When the work began, ISO 8601.
    """

    work: Literal["make", "cancel", "destroy"]
    key_id: _KeyId | None
    cka_id: _Hex
    label: _Text
    began: _Text


class LastKeyFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Define the content of last-key.json."""

    version: Literal[1]
    last_key: LastKey
    former: Annotated[tuple[FormerKey, ...], Meta(max_length=MAX_FORMER_KEYS)] = ()


class PinFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Define the content of pin.json."""

    version: Literal[1]
    pins: Annotated[tuple[PinRecord, ...], Meta(max_length=MAX_PIN_RECORDS)]


class FrozenMechanism(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold the mechanism that the probe found.

    Args:
        mechanism: How the token wraps.
        token_serial: Serial number of the token that was probed.
    """

    mechanism: Mechanism
    token_serial: _Text


class FrozenMechanismFile(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Define the content of mechanism.json."""

    version: Literal[1] = 1
    frozen: FrozenMechanism


class KeyWorkFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Define the content of keys.json."""

    version: Literal[1] = 1
    begun: Annotated[tuple[KeyWork, ...], Meta(max_length=MAX_KEY_WORK)] = ()
    retired: Annotated[tuple[RetiredKey, ...], Meta(max_length=MAX_RETIRED_KEYS)] = ()


class NoncesFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Define the content of nonces.json.

    Args:
        counts: Nonces that this node has used, by the fingerprint of the KEK. Nonces
            that are reserved ahead count as used.
        others: Count of each KEK that is not in `counts`.
    """

    version: Literal[1]
    counts: Annotated[dict[_Fingerprint, _Nonces], Meta(max_length=MAX_NONCE_KEYS)]
    others: _Nonces
