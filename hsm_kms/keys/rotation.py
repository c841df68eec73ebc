"""Decide which key is current, and which one comes next (docs/rotation.md).

1. `keys.current` decides if it is set. Otherwise the key last current on this node
   stays until the activation time of a younger one has come; activation times count
   only if all nodes see the same keys (`token.shared`).
2. Only a key that the token generated becomes current by its activation time: someone
   who obtains the PIN must not be able to inject a key whose value they know.
3. A key that appears although its activation time is long past proves a wrong clock, or
   was made elsewhere: the node does not switch to it by itself.
4. A node never goes back to an older key by itself: not when a key is lost, a clock is
   set back or an old token is restored, and never to a key_id that was current before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from hsm_kms.clock import when
from hsm_kms.errors import (
    HsmKmsError,
    KeyAmbiguousError,
    KeyLostError,
    KeyNotActiveError,
    KeyNotFoundError,
    KeyReusedError,
    KeyUnsuitableError,
)
from hsm_kms.keys import identity_faults
from hsm_kms.keys.key_id import fingerprint_in
from hsm_kms.keys.keyring import Keyring
from hsm_kms.keys.pending import by_time, coming_after, pending_after

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hsm_kms.ipc.values import Cipher, KeyRef
    from hsm_kms.keys.token_key import (
        KeySettings,
        TokenKey,
        UnidentifiedKey,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Hold what this node remembers of keys.

    Args:
        last: key_id of the last current key, or None.
        ref: CKA_LABEL and CKA_ID that it had, or None.
        born_here: True if the token had generated it and never let it out.
        distrusted: Names of keys that are known to be other keys than before.
        former: key_ids that were current here before that.
        first_seen: When each key was seen first, in seconds since the Unix epoch, by
            fingerprint.
        not_yet: Names of keys that cannot be switched to yet.
        missed_at: When this node last missed each key that has appeared since, by
            fingerprint, in seconds since the Unix epoch.
    """

    last: str | None = None
    ref: KeyRef | None = None
    born_here: bool = False
    distrusted: frozenset[tuple[str, Cipher]] = frozenset()
    former: frozenset[str] = frozenset()
    first_seen: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType({})
    )
    not_yet: frozenset[tuple[str, Cipher]] = frozenset()
    missed_at: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def known(self) -> frozenset[str]:
        """Return the fingerprints of the keys that are or were current here."""
        return frozenset(map(fingerprint_in, (self.last or "", *self.former)))


def build_keyring(
    keys: Sequence[TokenKey],
    settings: KeySettings,
    memory: Memory,
    now: float,
    *,
    unidentified: tuple[UnidentifiedKey, ...] = (),
) -> Keyring:
    """Decide which key is current.

    Args:
        keys: The keys found.
        settings: The configuration.
        memory: What this node remembers.
        now: Seconds since the Unix epoch.
        unidentified: Keys that could not be identified.
    """
    usable = [key for key in keys if key.fingerprint not in settings.retired]
    current, fault = _choose(usable, settings, memory, now)
    if not usable and settings.current is None and unidentified:
        fault = unidentified[0].error
    if isinstance(fault, KeyLostError):
        fault = identity_faults.unidentified_last(unidentified, memory) or fault
    pending = pending_after(current, usable, settings, memory, now) if current else ()
    # A foreign key that is the only one at the first start is current from then on.
    known = memory.known | ({current.fingerprint} if current else set())
    return Keyring(
        keys=tuple(keys),
        current=current,
        fault=fault,
        pending=pending,
        unidentified=unidentified,
        known=known,
        settings=settings,
    )


def _choose(
    keys: Sequence[TokenKey], settings: KeySettings, memory: Memory, now: float
) -> tuple[TokenKey | None, HsmKmsError | None]:
    if settings.current is not None:
        return _named(keys, settings.current, settings, memory)
    if memory.last is not None:
        return _as_before(keys, memory.last, settings, memory, now)
    return _first(keys, settings, now)


def _named(
    keys: Sequence[TokenKey], wanted: str, settings: KeySettings, memory: Memory
) -> tuple[TokenKey | None, HsmKmsError | None]:
    key = _find(keys, wanted)
    if key is None:
        who = f"the key that keys.current names, {wanted},"
        return None, _missing(keys, wanted, settings, memory, who)
    if key.key_id != memory.last and key.key_id in memory.former:
        return key, KeyReusedError(
            f"keys.current names {key.key_id}, which was current here before",
            hint="give it a new key_id: set keys.suffix to one never used",
        )
    return key, identity_faults.distrusted(key, memory) or _forbidden(key, settings)


def _missing(
    keys: Sequence[TokenKey],
    key_id: str,
    settings: KeySettings,
    memory: Memory,
    who: str,
) -> HsmKmsError:
    """Return why the key with this key_id cannot be the current one.

    Args:
        keys: The keys found.
        key_id: What it is known by.
        settings: The configuration.
        memory: What this node remembers.
        who: The key and what knows it, in words; the message goes on with a verb.
    """
    fingerprint = fingerprint_in(key_id)
    if fingerprint in settings.retired:
        return KeyUnsuitableError(
            f"{who} is in keys.retired",
            hint="remove it from keys.retired, or name another key in keys.current",
        )
    if any(key.fingerprint == fingerprint for key in keys):
        return KeyUnsuitableError(
            f"{who} cannot wrap on this token",
            hint="undo what changed on the token or in keys.mechanism, or name "
            "another key in keys.current",
        )
    if memory.last is not None and fingerprint_in(memory.last) == fingerprint:
        replaced = identity_faults.replaced(keys, memory)
        if replaced is not None:
            return replaced
    return KeyLostError(
        f"{who} is not on the token",
        hint="restore it, or name another key in keys.current: see `hsm-kms keys list`",
    )


def _as_before(
    keys: Sequence[TokenKey],
    last: str,
    settings: KeySettings,
    memory: Memory,
    now: float,
) -> tuple[TokenKey | None, HsmKmsError | None]:
    base = _find(keys, last)
    if base is None:
        who = f"the last current key, {last},"
        return None, _missing(keys, last, settings, memory, who)
    doubt = identity_faults.distrusted(
        base, memory
    ) or identity_faults.no_longer_born_here(base, memory)
    if doubt is not None:
        return base, doubt
    due = [
        each.key
        for each in coming_after(base, keys, settings, memory, now)
        if each.at is not None
        and each.at <= now
        and each.key.name not in memory.not_yet
    ]
    if due:
        return max(due, key=lambda key: key.age), None
    if base.key_id != last and base.key_id in memory.former:
        return base, KeyReusedError(
            f"the key_id {base.key_id} was current here before {last}",
            hint="set keys.suffix to one never used, or back to what it was",
        )
    return base, _forbidden(base, settings)


def _first(
    keys: Sequence[TokenKey], settings: KeySettings, now: float
) -> tuple[TokenKey | None, HsmKmsError | None]:
    """Choose the first key of a node that remembers none."""
    if not keys:
        return None, KeyNotFoundError(
            f"no AES key {settings.which} is on the token",
            hint="correct keys.ids"
            if settings.ids
            else "make one with `hsm-kms keys generate`",
        )
    fit = [key for key in keys if not settings.refuses(key)]
    if not fit:
        return _first_unfit([key for key in keys if key.encrypts] or keys, settings)
    born = [key for key in fit if settings.shared and by_time(key, settings)]
    if len(fit) > 1 and not born:
        return None, _several(fit, settings)
    active = [key for key in born or fit if key.activation <= now]
    if active:
        return max(active, key=lambda key: key.age), None
    if len(born or fit) < len(fit):
        return None, _several(fit, settings)
    return None, _not_active(min(fit, key=lambda key: key.age))


def _first_unfit(
    keys: Sequence[TokenKey], settings: KeySettings
) -> tuple[TokenKey | None, HsmKmsError | None]:
    if len(keys) > 1:
        return None, _several(keys, settings)
    return keys[0], _forbidden(keys[0], settings)


def _find(keys: Sequence[TokenKey], key_id: str) -> TokenKey | None:
    fingerprint = fingerprint_in(key_id)
    for key in keys:
        if key.fingerprint == fingerprint and key.encrypts:
            return key
    return None


def _several(keys: Sequence[TokenKey], settings: KeySettings) -> KeyAmbiguousError:
    ids = ", ".join(key.key_id for key in keys)
    return KeyAmbiguousError(
        f"{len(keys)} keys are {settings.which}: {ids}",
        hint="name the one to encrypt with in keys.current",
    )


def _not_active(key: TokenKey) -> KeyNotActiveError:
    return KeyNotActiveError(
        f"no key is active yet; {key.key_id} will be from {when(key.activation)}",
        hint="see whether this node's clock is right, or wait",
    )


def _forbidden(key: TokenKey, settings: KeySettings) -> HsmKmsError | None:
    if not key.encrypts:
        return KeyUnsuitableError(
            f"this token cannot wrap under key {key.key_id}",
            hint="make a key with `hsm-kms keys generate`",
        )
    if not key.violations or not settings.enforce:
        return None
    return KeyUnsuitableError(
        f"key {key.key_id} breaks the policy: {', '.join(key.violations)}",
        hint="make a key with `hsm-kms keys generate`, or set keys.policy: warn",
    )
