"""What is on the token: the keys, those retired by their label, and leftovers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import HsmKmsError, KeyAmbiguousError, KeyNotFoundError
from hsm_kms.ipc.values import Cipher, KeyRef
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.keys.keyring import Keyring, KeyState

if TYPE_CHECKING:
    from hsm_kms.ipc.values import KeySeen
    from hsm_kms.keys.keyring import TokenKey
    from hsm_kms.keys.rotation import Memory

RETIRED: Final = "/retired/"
_TIME: Final = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One AES key, with the HMAC key that belongs to it.

    Args:
        seen: What the token tells of it.
        beside: The HMAC key is the partner of this one: of the key itself, or of what
            it was called before `keys retire` was interrupted; None: there is none.
        names: Its fingerprints: of the AES key alone, and of the pair. Empty where it
            could not be identified.
        keys: The same as the keyring knows them; empty for a relabelled key.
        relabelled: Its label says that it is retired.
        problem: Why it could not be identified.
    """

    seen: KeySeen
    beside: KeyRef | None
    names: dict[Cipher, str]
    keys: tuple[TokenKey, ...] = ()
    relabelled: bool = False
    problem: str = ""

    @property
    def ref(self) -> KeyRef:
        """How a session finds the AES key."""
        return self.seen.ref

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the AES key alone; None if it could not be identified."""
        return self.names.get(Cipher.GCM)

    def is_key(self, key: TokenKey) -> bool:
        """Return True if `key` is this AES key, alone or as a pair."""
        return key.ref == self.ref and key.fingerprint in self.names.values()

    @property
    def half_retired(self) -> bool:
        """Whether its HMAC key still has the label of before."""
        return self.beside is not None and self.beside != self.ref

    @property
    def retired_since(self) -> float | None:
        """The time in its label, in seconds since the Unix epoch."""
        return time_in(self.ref.label) if self.relabelled else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one worker sees.

    Args:
        ring: The keyring as this node sees it; without keys where `error` is set.
        error: Why there is no keyring.
        memory: What this node remembers.
        found: The keys.
        loose: AES keys that HMAC keys belong to and that are not there.
    """

    ring: Keyring
    error: HsmKmsError | None
    memory: Memory
    found: tuple[Found, ...]
    loose: tuple[KeyRef, ...]

    @property
    def cipher(self) -> Cipher | None:
        """What this token wraps by; None where no key tells."""
        return next((key.cipher for key in self.ring.keys if key.encrypts), None)

    def main(self, found: Found) -> tuple[str, Cipher] | None:
        """key_id and cipher under which a key is spoken of; None: it has none."""
        if not found.names:
            return None
        current = self.ring.current
        if current is not None and found.is_key(current):
            return current.key_id, current.cipher
        wanted = self.cipher or Cipher.CBC_HMAC
        cipher = wanted if wanted in found.names else Cipher.GCM
        return self.key_id(found.names[cipher]), cipher

    def key_id(self, name: str) -> str:
        """The key_id of a fingerprint."""
        suffix = self.ring.settings.suffix
        return f"{name}.{suffix}" if suffix else name

    def key(self, found: Found) -> TokenKey | None:
        """The key as the keyring knows it, under its main name."""
        main = self.main(found)
        return next((key for key in found.keys if main and key.cipher is main[1]), None)

    def state(self, found: Found) -> KeyState:
        """What a key is to this node."""
        if found.relabelled:
            return KeyState.RETIRED
        key = self.key(found)
        return KeyState.REFUSED if key is None else self.ring.state(key)

    def find(self, key_id: str) -> Found | None:
        """The key with this fingerprint, whatever the suffix.

        Raises:
            KeyAmbiguousError: Several objects are this key.
        """
        name = fingerprint_in(key_id)
        found = [each for each in self.found if name in each.names.values()]
        if len(found) > 1:
            ids = ", ".join(each.ref.cka_id.hex() for each in found)
            raise KeyAmbiguousError(
                f"{len(found)} objects on the token are key {key_id}: CKA_IDs {ids}",
                hint="remove the superfluous ones with the tools of the HSM",
            )
        return found[0] if found else None

    def get(self, key_id: str) -> Found:
        """The same, where there must be one.

        Raises:
            HsmKmsError: There is none, or there are several.
        """
        found = self.find(key_id)
        if found is None and self.error is not None:
            raise self.error
        if found is None:
            raise KeyNotFoundError(
                f"no key {key_id} is on the token", hint="see `hsm-kms keys list`"
            )
        return found

    def was_current(self, found: Found) -> bool:
        """Whether this node remembers a key as its current one, now or before."""
        known = {self.memory.last or "", *self.memory.former}
        return not {fingerprint_in(each) for each in known}.isdisjoint(
            found.names.values()
        )

    def refuse_in_use(self, found: Found, key_id: str) -> None:
        """Leave a key alone that this node encrypts under, or did last.

        Raises:
            HsmKmsError: It does.
        """
        if not self.is_in_use(found):
            return
        current = self.ring.current
        hint = "make the next one with `hsm-kms keys rotate`, and wait for its time"
        if current is not None and not found.is_key(current):
            hint = (
                f"its server has not turned to {current.key_id} yet, or keys.current "
                "names another than it has: see `hsm-kms status`"
            )
        raise HsmKmsError(f"{key_id} is the key this node encrypts with", hint=hint)

    def is_in_use(self, found: Found) -> bool:
        """Whether this node encrypts under it, or did so last, or is told to."""
        last = {self.memory.last or "", self.ring.settings.current or ""}
        if self.ring.current is not None and found.is_key(self.ring.current):
            return True
        return not {fingerprint_in(each) for each in last}.isdisjoint(
            found.names.values()
        )


def retired_label(label: str, seconds: float) -> str:
    """CKA_LABEL of a key retired at this time."""
    return label + RETIRED + datetime.fromtimestamp(seconds, UTC).strftime(_TIME)


def time_in(label: str) -> float | None:
    """When a key with this CKA_LABEL was retired; None where it does not say."""
    try:
        moment = datetime.strptime(f"{label.rpartition('/')[2]} +0000", f"{_TIME} %z")
    except ValueError:
        return None
    return moment.timestamp()
