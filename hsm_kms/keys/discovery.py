"""Read the keys of a token: list them, identify them, and probe the mechanism.

1. A key's fingerprint comes from its own cryptography, never from an attribute, and
   from the same handle as its attributes.
2. The mechanism is found by a probe with the real key, at each start of a worker, and
   frozen in the state directory: from then on only that mechanism is used, until the
   configuration names another.
3. A key that cannot be identified does not prevent the use of other keys; if no key
   at all can be identified, the token is at fault.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from hsm_kms.errors import (
    KeyAmbiguousError,
    KeyNotFoundError,
    MechanismError,
    PreconditionError,
)
from hsm_kms.ipc.messages import FindKeys, Probe, Probed
from hsm_kms.ipc.values import Cipher, Identify, KeyRef, Mechanism
from hsm_kms.keys.discovery_faults import mechanism_changed, unidentified
from hsm_kms.keys.key_id import activation_of, fingerprint_in
from hsm_kms.keys.listing import list_keys
from hsm_kms.keys.policy import born_here, violations
from hsm_kms.keys.token_key import (
    KeySettings,
    TokenKey,
    UnidentifiedKey,
)
from hsm_kms.log import get_logger
from hsm_kms.state_dir.directory import SAVE_SECONDS
from hsm_kms.state_dir.records import FrozenMechanism
from hsm_kms.state_dir.store import (
    StateCorruptError,
    StateWriteError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from hsm_kms.ipc.values import KeySeen
    from hsm_kms.keys.listing import Ask
    from hsm_kms.state_dir.directory import StateDir
    from hsm_kms.state_dir.records import LastKey
    from hsm_kms.token.process import Worker

GCM_MECHANISMS: Final = {
    "caller": (Mechanism.GCM_CALLER,),
    "token": (Mechanism.GCM_TOKEN,),
    "appended": (Mechanism.GCM_APPENDED,),
    "auto": (Mechanism.GCM_CALLER, Mechanism.GCM_TOKEN, Mechanism.GCM_APPENDED),
}

# The key is at fault, and the token works.
_OF_THE_KEY: Final = (PreconditionError, KeyAmbiguousError, KeyNotFoundError)

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
        unidentified: The keys that could not be identified.
    """

    keys: tuple[TokenKey, ...]
    unidentified: tuple[UnidentifiedKey, ...] = ()


class Discovery:
    """Read the keys of a token.

    Args:
        settings: The configuration.
        state_dir: Where the mechanism is frozen.
        seconds: Longest wait for each page of keys.
        start_seconds: Longest wait for each answer while a worker starts.
        freeze: Freeze the mechanism that the first probe finds; commands do not.
        identify: For which keys a fingerprint is computed at each listing.
    """

    def __init__(
        self,
        settings: KeySettings,
        state_dir: StateDir,
        *,
        seconds: float,
        start_seconds: float,
        freeze: bool,
        identify: Identify = Identify.ALWAYS,
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._freeze = freeze
        self._identifies = identify
        self._mechanism: Mechanism | None = None

    async def read(
        self,
        worker: Worker,
        last: LastKey | None,
        *,
        fresh: bool,
        between: Callable[[], Awaitable[None]] | None = None,
    ) -> KeyListing:
        """List and identify the keys on the control session of a worker.

        Args:
            worker: A worker that is logged in.
            last: The key last current on this node, or None.
            fresh: The worker has just been started: probe the mechanism on it.
            between: As for `list_keys`.

        Raises:
            HsmKmsError: The token could not be asked, or identifies no key at all, or
                no mechanism works.
        """
        seconds = self._start_seconds if fresh else self._seconds
        ask = partial(worker.ask, seconds=seconds)
        settings = self._settings
        first = KeyRef(last.label, bytes.fromhex(last.cka_id)) if last else None
        wanted = FindKeys(
            label=settings.label,
            ids=settings.ids,
            first=first,
            identify=self._identifies,
        )
        seen = await list_keys(ask, wanted, between)
        keys, unidentified = self._identify(seen)
        if keys and (fresh or self._mechanism is None):
            self._mechanism = await self._probe(worker, ask, keys, last)
        how = self._mechanism
        return KeyListing(
            keys=tuple(_by_mechanism(key, how) for key in keys),
            unidentified=tuple(unidentified),
        )

    async def read_names(
        self, worker: Worker, held: Sequence[TokenKey]
    ) -> KeyListing | None:
        """Return the keys held that the token shows, by their names alone.

        No key is used. Returns None if a key must be identified: one that is not held,
        or if this discovery identifies keys always.

        Args:
            worker: A worker that is logged in.
            held: The keys held.

        Raises:
            HsmKmsError: The token could not be asked.
        """
        if self._identifies is Identify.ALWAYS:
            return None
        settings = self._settings
        wanted = FindKeys(
            label=settings.label, ids=settings.ids, identify=Identify.NEVER
        )
        seen = await list_keys(partial(worker.ask, seconds=self._seconds), wanted)
        names = {each.ref for each in seen}
        if not names <= {key.ref for key in held}:
            return None
        return KeyListing(keys=tuple(key for key in held if key.ref in names))

    # Identity

    def _identify(
        self, seen: Sequence[KeySeen]
    ) -> tuple[list[TokenKey], list[UnidentifiedKey]]:
        keys: dict[object, TokenKey] = {}
        unidentified: dict[object, UnidentifiedKey] = {}
        for one in seen:
            for cipher in Cipher if one.partner else (Cipher.GCM,):
                known = self._identify_one(one, cipher)
                if isinstance(known, TokenKey):
                    keys.setdefault(known.found_by, known)
                else:
                    unidentified[known.ref, cipher, str(known.error)] = known
        for each in unidentified.values():
            if not keys and not isinstance(each.error, _OF_THE_KEY):
                raise each.error
        return list(keys.values()), list(unidentified.values())

    def _identify_one(
        self, seen: KeySeen, cipher: Cipher
    ) -> TokenKey | UnidentifiedKey:
        settings = self._settings
        found = violations(seen, cipher, settings)
        named = seen.partner if cipher is Cipher.CBC_HMAC else seen
        fingerprint = named.fingerprint if named else None
        if fingerprint is None:
            problem = seen.problem or (named.problem if named else None)
            error = unidentified(seen.ref, problem, found)
            return UnidentifiedKey(ref=seen.ref, error=error)
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

    # Mechanism

    async def _probe(
        self,
        worker: Worker,
        ask: Ask,
        keys: Sequence[TokenKey],
        last: LastKey | None,
    ) -> Mechanism:
        wanted = wanted_mechanisms(self._settings)
        frozen = self._frozen(worker)
        held = frozen if frozen in wanted else None
        key = _to_probe(keys, self._settings.current or (last.key_id if last else None))
        request = Probe(
            ref=key.ref,
            fingerprint=key.fingerprint,
            paired=key.cipher is Cipher.CBC_HMAC,
            wanted=(held,) if held else wanted,
        )
        try:
            reply = await ask(request)
        except MechanismError as error:
            if held is None:
                raise
            raise mechanism_changed(held, error) from None
        if not isinstance(reply, Probed):
            raise MechanismError("the worker answered a Probe with something else")
        if reply.mechanism is not frozen:
            await self._save(worker, reply.mechanism)
        return reply.mechanism

    def _frozen(self, worker: Worker) -> Mechanism | None:
        try:
            frozen = self._state_dir.frozen_mechanism()
        except StateCorruptError as error:
            _log.warning("the mechanism is probed again", error=error.sentence)
            return self._mechanism
        if frozen is None or frozen.token_serial != worker.token_serial:
            return self._mechanism
        return frozen.mechanism

    async def _save(self, worker: Worker, mechanism: Mechanism) -> None:
        if not self._freeze:
            return
        _log.info("mechanism found", mechanism=str(mechanism))
        frozen = FrozenMechanism(mechanism=mechanism, token_serial=worker.token_serial)
        try:
            await self._state_dir.background(
                partial(self._state_dir.freeze_mechanism, frozen), SAVE_SECONDS
            )
        except StateWriteError as error:
            _log.warning("the mechanism is not saved", error=error.sentence)


def _by_mechanism(key: TokenKey, how: Mechanism | None) -> TokenKey:
    """Return the key with the mechanism that this token wraps under it with."""
    if how is not None and how.cipher is key.cipher:
        return replace(key, mechanism=how, encrypts=True)
    other = Mechanism.CBC_HMAC if key.cipher is Cipher.CBC_HMAC else None
    return replace(key, mechanism=other, encrypts=False)


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
    pair = (each for each in keys if each.cipher is Cipher.CBC_HMAC)
    return next((each for each in pair if each.ref == ranked[0].ref), ranked[0])
