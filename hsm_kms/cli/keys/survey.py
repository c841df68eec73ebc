"""Describe what is on the token: keys, keys retired by their label, and leftovers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from hsm_kms.clock import when
from hsm_kms.errors import HsmKmsError, KeyAmbiguousError, KeyNotFoundError
from hsm_kms.ipc.values import Cipher, KeyRef
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.keys.keyring import (
    Keyring,
    KeyState,
)

if TYPE_CHECKING:
    from hsm_kms.ipc.values import KeySeen
    from hsm_kms.keys.rotation import Memory
    from hsm_kms.keys.token_key import TokenKey

RETIRED: Final = "/retired/"
_TIME: Final = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Describe one AES key and the HMAC key that belongs to it.

    Args:
        seen: Attributes of the AES key, as the token reports them.
        beside: Name of the AES key whose partner the HMAC key is by its names. It
            differs from `seen.ref` if `keys retire` was interrupted before it changed
            the HMAC key's label. None if there is no HMAC key.
        names: Fingerprints by cipher: of the AES key alone, and of the pair. Empty if
            the key could not be identified.
        keys: The same key in the keyring, per cipher; empty for a relabelled key.
        relabelled: True if the label says that the key is retired.
        problem: Why the key could not be identified, or "".
    """

    seen: KeySeen
    beside: KeyRef | None
    names: dict[Cipher, str]
    keys: tuple[TokenKey, ...] = ()
    relabelled: bool = False
    problem: str = ""

    @property
    def ref(self) -> KeyRef:
        """Return the names by which a session finds the AES key."""
        return self.seen.ref

    @property
    def fingerprint(self) -> str | None:
        """Return the fingerprint of the AES key alone; None if not identified."""
        return self.names.get(Cipher.GCM)

    def is_key(self, key: TokenKey) -> bool:
        """Return True if `key` is this AES key, alone or as a pair."""
        return key.ref == self.ref and key.fingerprint in self.names.values()

    @property
    def half_retired(self) -> bool:
        """Return True if the HMAC key still has the label of before `keys retire`."""
        return self.beside is not None and self.beside != self.ref

    @property
    def retired_since(self) -> float | None:
        """Return the time in the label, in seconds since the Unix epoch.

        None if the label does not say that the key is retired, or not when.
        """
        return time_in(self.ref.label) if self.relabelled else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Hold what one worker sees on the token.

    Args:
        ring: The keyring as this node sees it; without keys if `error` is set.
        error: Why there is no keyring, or None.
        memory: What this node remembers of keys.
        found: The keys.
        loose: Names of missing AES keys whose HMAC keys are on the token.
    """

    ring: Keyring
    error: HsmKmsError | None
    memory: Memory
    found: tuple[Found, ...]
    loose: tuple[KeyRef, ...]

    @property
    def cipher(self) -> Cipher | None:
        """Return the cipher that this token wraps with; None if no key can encrypt."""
        return next((key.cipher for key in self.ring.keys if key.encrypts), None)

    def main(self, found: Found) -> tuple[str, Cipher] | None:
        """Return the key_id and cipher to show for a key; None if it has no key_id."""
        if not found.names:
            return None
        current = self.ring.current
        if current is not None and found.is_key(current):
            return current.key_id, current.cipher
        wanted = self.cipher or Cipher.CBC_HMAC
        cipher = wanted if wanted in found.names else Cipher.GCM
        return self.key_id(found.names[cipher]), cipher

    def key_id(self, name: str) -> str:
        """Return the key_id for a fingerprint, with the configured suffix."""
        suffix = self.ring.settings.suffix
        return f"{name}.{suffix}" if suffix else name

    def key(self, found: Found) -> TokenKey | None:
        """Return the key from the keyring, under its main name; None if not there."""
        main = self.main(found)
        return next((key for key in found.keys if main and key.cipher is main[1]), None)

    def state(self, found: Found) -> KeyState:
        """Return what this node uses a key for."""
        if found.relabelled:
            return KeyState.RETIRED
        key = self.key(found)
        return KeyState.REFUSED if key is None else self.ring.state(key)

    def find(self, key_id: str) -> Found | None:
        """Return the key with this key_id, whatever the suffix; None if not there.

        Raises:
            KeyAmbiguousError: Several objects on the token are the same key.
        """
        name = fingerprint_in(key_id)
        found = [each for each in self.found if name in each.names.values()]
        if len(found) > 1:
            ids = ", ".join(each.ref.cka_id.hex() for each in found)
            raise KeyAmbiguousError(
                f"{len(found)} objects on the token are key {key_id}: CKA_IDs {ids}",
                hint="remove the duplicates with the HSM's own tools",
            )
        return found[0] if found else None

    def get(self, key_id: str) -> Found:
        """Return the key with this key_id, whatever the suffix.

        Raises:
            HsmKmsError: No object on the token is this key, or several are.
        """
        found = self.find(key_id)
        if found is None and self.error is not None:
            raise self.error
        if found is None:
            raise KeyNotFoundError(
                f"no key {key_id} is on the token", hint="run `hsm-kms keys list`"
            )
        return found

    def was_current(self, found: Found) -> bool:
        """Return True if this node remembers that the key is or was current."""
        return not self.memory.known.isdisjoint(found.names.values())

    def refuse_in_use(self, found: Found, key_id: str) -> None:
        """Refuse to touch a key that this node encrypts with, or did last.

        Raises:
            HsmKmsError: The key is in use.
        """
        if not self.is_in_use(found):
            return
        raise HsmKmsError(
            f"this node encrypts with {key_id}", hint=self._how_to_switch(found)
        )

    def _how_to_switch(self, found: Found) -> str:
        """Return how this node comes to encrypt with another key than `found`."""
        ring = self.ring
        if ring.current is not None and not found.is_key(ring.current):
            return (
                f"the server on this node has not switched to {ring.current.key_id} "
                "yet, or keys.current names another key: run `hsm-kms status`"
            )
        if not ring.settings.shared or ring.settings.current is not None:
            return (
                "name another key in keys.current on every node first; "
                "`hsm-kms keys generate --another` generates one"
            )
        for each in ring.pending:
            if each.at is not None:
                key_id = each.key.key_id
                return f"wait until {key_id} becomes current at {when(each.at)}"
        return "run `hsm-kms keys rotate`, and wait until the next key is current"

    def is_in_use(self, found: Found) -> bool:
        """Return True if this node encrypts with the key, did last, or will."""
        last = {self.memory.last or "", self.ring.settings.current or ""}
        if self.ring.current is not None and found.is_key(self.ring.current):
            return True
        return not {fingerprint_in(each) for each in last}.isdisjoint(
            found.names.values()
        )


def retired_label(label: str, seconds: float) -> str:
    """Return the CKA_LABEL of a key that is retired at this time.

    Args:
        label: The configured CKA_LABEL.
        seconds: The time, in seconds since the Unix epoch.
    """
    return label + RETIRED + datetime.fromtimestamp(seconds, UTC).strftime(_TIME)


def time_in(label: str) -> float | None:
    """Return when a key with this CKA_LABEL was retired; None if the label has no time.

    The time is in seconds since the Unix epoch.
    """
    try:
        moment = datetime.strptime(f"{label.rpartition('/')[2]} +0000", f"{_TIME} %z")
    except ValueError:
        return None
    return moment.timestamp()
