"""Read the keys of a token: list them, identify them, and probe the mechanism.

1. A key's fingerprint comes from its own cryptography, never from an attribute.
2. The mechanism is found by a probe with the real key, at each start of a worker, and
   frozen in the state directory: from then on only that mechanism is used, until the
   configuration names another.
3. A key that cannot be identified does not prevent the use of other keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import WeakKeyDictionary

from hsm_kms.errors import (
    HsmKmsError,
    KeyAmbiguousError,
    KeyNotFoundError,
    KeyUnsuitableError,
    MechanismError,
)
from hsm_kms.ipc.messages import Probe, Probed
from hsm_kms.ipc.values import Cipher, KeySeen, Mechanism
from hsm_kms.keys.key_id import (
    activation_of,
    fingerprint_in,
    fingerprint_of_cka_id,
)
from hsm_kms.keys.keyring import KeySettings, TokenKey
from hsm_kms.keys.listing import fingerprint, list_keys
from hsm_kms.keys.policy import born_here, violations
from hsm_kms.log import get_logger
from hsm_kms.state_dir.directory import StateCorruptError, StateWriteError
from hsm_kms.state_dir.records import FrozenMechanism

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.ipc.values import KeyRef
    from hsm_kms.keys.listing import Ask
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.token.process import Worker

GCM_MECHANISMS: Final = {
    "caller": (Mechanism.GCM_CALLER,),
    "token": (Mechanism.GCM_TOKEN,),
    "appended": (Mechanism.GCM_APPENDED,),
    "auto": (Mechanism.GCM_CALLER, Mechanism.GCM_TOKEN, Mechanism.GCM_APPENDED),
}

# Keys by what a session finds them by, with what they looked like.
Identified: TypeAlias = "dict[tuple[KeyRef, Cipher], tuple[TokenKey, KeySeen]]"

_log = get_logger(__name__)


def wanted_mechanisms(settings: KeySettings) -> tuple[Mechanism, ...]:
    """Return what `keys.mechanism` and `keys.gcm_iv` allow, the preferred one first."""
    gcm = GCM_MECHANISMS[settings.gcm_iv]
    if settings.mechanism == Cipher.GCM:
        return gcm
    if settings.mechanism == Cipher.CBC_HMAC:
        return (Mechanism.CBC_HMAC,)
    return (*gcm, Mechanism.CBC_HMAC)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyListing:
    """Hold the keys that one worker saw at one time.

    Args:
        keys: The keys.
        unidentified: Why a key could not be identified; None if every key was.
    """

    keys: tuple[TokenKey, ...]
    unidentified: HsmKmsError | None


class Discovery:
    """Read the keys of a token.

    Args:
        settings: The configuration.
        state_dir: Where the mechanism is frozen.
        seconds: Longest wait for each answer of the token.
        start_seconds: Longest wait for each answer while a worker starts.
        freeze: Freeze the mechanism that the first probe finds; commands do not.
    """

    def __init__(
        self,
        settings: KeySettings,
        state_dir: StateDir,
        *,
        seconds: float,
        start_seconds: float,
        freeze: bool,
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._freeze = freeze
        self._mechanism: Mechanism | None = None
        self._identified: WeakKeyDictionary[Worker, Identified] = WeakKeyDictionary()

    async def read(
        self, worker: Worker, last: str | None, *, fresh: bool
    ) -> KeyListing:
        """List and identify the keys on the control session of a worker.

        Args:
            worker: A worker that is logged in.
            last: key_id last current on this node, or None.
            fresh: The worker has just been started: probe the mechanism on it.

        Raises:
            HsmKmsError: The token could not be asked, or no mechanism works.
        """
        seconds = self._start_seconds if fresh else self._seconds
        ask = partial(worker.ask, seconds=seconds)
        seen = await list_keys(ask, self._settings.label, self._settings.ids)
        known = self._identified.setdefault(worker, {})
        trusted = {} if fresh else _but(known, last)
        keys, unidentified = await self._identify_all(ask, seen, trusted)
        self._identified[worker] = keys
        found = [key for key, _ in keys.values()]
        if found and (fresh or self._mechanism is None):
            self._mechanism = await self._probe(worker, ask, found, seen, last)
        how = self._mechanism
        return KeyListing(
            keys=tuple(_by_mechanism(key, how) for key in found),
            unidentified=unidentified,
        )

    # Identity

    async def _identify_all(
        self, ask: Ask, seen: Sequence[KeySeen], known: Identified
    ) -> tuple[Identified, HsmKmsError | None]:
        keys: Identified = {}
        unidentified: HsmKmsError | None = None
        for one in seen:
            for cipher in Cipher if one.partner else (Cipher.GCM,):
                name = one.ref, cipher
                before = known.get(name)
                if before is not None and before[1] == one:
                    keys[name] = before
                    continue
                try:
                    keys[name] = await self._identify(ask, one, cipher), one
                except KeyNotFoundError:
                    continue  # deleted while the keys were listed
                except (
                    KeyAmbiguousError,
                    KeyUnsuitableError,
                    MechanismError,
                ) as error:
                    unidentified = error
        if not keys and isinstance(unidentified, MechanismError):
            raise unidentified  # the token's fault, not the keys'
        return keys, unidentified

    async def _identify(self, ask: Ask, seen: KeySeen, cipher: Cipher) -> TokenKey:
        settings = self._settings
        found = violations(seen, cipher, settings)
        try:
            fingerprint = await self._fingerprint(ask, seen, cipher)
        except MechanismError:
            if not found:
                raise  # the token's fault, not the key's
            raise _unidentified(seen, found) from None
        suffix = f".{settings.suffix}" if settings.suffix else ""
        return TokenKey(
            ref=seen.ref,
            fingerprint=fingerprint,
            key_id=fingerprint + suffix,
            cipher=cipher,
            mechanism=None,
            activation=activation_of(seen.ref.cka_id),
            violations=found,
            born_here=born_here(seen),
        )

    async def _fingerprint(self, ask: Ask, seen: KeySeen, cipher: Cipher) -> str:
        if self._settings.fingerprint == "cka_id":
            return fingerprint_of_cka_id(seen.ref.cka_id)
        return await fingerprint(ask, seen.ref, paired=cipher is Cipher.CBC_HMAC)

    # Mechanism

    async def _probe(
        self,
        worker: Worker,
        ask: Ask,
        keys: Sequence[TokenKey],
        seen: Sequence[KeySeen],
        last: str | None,
    ) -> Mechanism:
        wanted = wanted_mechanisms(self._settings)
        frozen = self._frozen(worker)
        held = frozen if frozen in wanted else None
        key = _to_probe(keys, self._settings.current or last)
        paired = any(one.ref == key.ref and one.partner for one in seen)
        request = Probe(ref=key.ref, paired=paired, wanted=(held,) if held else wanted)
        try:
            reply = await ask(request)
        except MechanismError as error:
            if held is None:
                raise
            raise _changed(held, error) from None
        if not isinstance(reply, Probed):
            raise MechanismError("the worker answered a Probe with something else")
        if reply.mechanism is not frozen:
            self._save(worker, reply.mechanism)
        return reply.mechanism

    def _frozen(self, worker: Worker) -> Mechanism | None:
        try:
            frozen = self._state_dir.frozen_mechanism()
        except StateCorruptError as error:
            _log.warning("the mechanism is probed anew", error=error.sentence)
            return self._mechanism
        if frozen is None or frozen.token_serial != worker.token_serial:
            return self._mechanism
        return Mechanism(frozen.mechanism)

    def _save(self, worker: Worker, mechanism: Mechanism) -> None:
        if not self._freeze:
            return
        _log.info("mechanism", mechanism=str(mechanism))
        try:
            self._state_dir.freeze_mechanism(
                FrozenMechanism(mechanism=mechanism, token_serial=worker.token_serial)
            )
        except StateWriteError as error:
            _log.warning("the mechanism is not saved", error=error.sentence)


def _by_mechanism(key: TokenKey, how: Mechanism | None) -> TokenKey:
    """Return the key with the mechanism that this token wraps under it with."""
    if how is not None and how.cipher is key.cipher:
        return replace(key, mechanism=how, encrypts=True)
    other = Mechanism.CBC_HMAC if key.cipher is Cipher.CBC_HMAC else None
    return replace(key, mechanism=other, encrypts=False)


def _but(known: Identified, last: str | None) -> Identified:
    """Return what is known of all keys but the current one.

    The current key is identified anew each time.
    """
    fingerprint = fingerprint_in(last) if last else None
    return {
        name: each for name, each in known.items() if each[0].fingerprint != fingerprint
    }


def _to_probe(keys: Sequence[TokenKey], preferred: str | None) -> TokenKey:
    """Return the key that will probably be current; a pair rather than a lone key."""
    fingerprint = fingerprint_in(preferred) if preferred else None
    ranked = sorted(
        keys,
        key=lambda key: (
            key.fingerprint != fingerprint,
            bool(key.violations),
            key.cipher is not Cipher.CBC_HMAC,
        ),
    )
    return ranked[0]


def _unidentified(seen: KeySeen, found: Sequence[str]) -> KeyUnsuitableError:
    ref = seen.ref
    return KeyUnsuitableError(
        f"the key labelled {ref.label!r} with CKA_ID {ref.cka_id.hex() or '(empty)'} "
        f"cannot be identified: {', '.join(found)}",
        hint="make a key with `hsm-kms keys generate`, and name it in keys.current",
    )


def _changed(held: Mechanism, error: MechanismError) -> MechanismError:
    return MechanismError(
        f"this token has always wrapped with {held}, and now it does not: {error}",
        function=error.function,
        rv=error.rv,
        hint="find out what changed on the token; to accept it, name the mechanism "
        "in keys.mechanism and keys.gcm_iv",
    )
