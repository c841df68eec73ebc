"""Look at everything on the token that has to do with the configured keys."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hsm_kms.cli.keys.survey import RETIRED, Found, Survey
from hsm_kms.cli.read_keyring import read_ring, remembered
from hsm_kms.errors import (
    HsmKmsError,
    KeyAmbiguousError,
    KeyNotFoundError,
    MechanismError,
)
from hsm_kms.ipc.values import Cipher, KeyRef
from hsm_kms.keys.key_id import fingerprint_of_cka_id
from hsm_kms.keys.keyring import Keyring
from hsm_kms.keys.listing import fingerprint, list_keys
from hsm_kms.keys.policy import violations
from hsm_kms.server.settings import key_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from hsm_kms.config.schema import Config
    from hsm_kms.ipc.values import KeySeen
    from hsm_kms.keys.keyring import KeySettings
    from hsm_kms.keys.listing import Ask
    from hsm_kms.token.process import Worker


def ask_of(config: Config, worker: Worker) -> Ask:
    """Asks this worker; a command waits as long as a start may take."""
    return partial(worker.ask, seconds=config.token.start_timeout)


async def read_survey(config: Config, worker: Worker) -> Survey:
    """Look at everything that has to do with the configured keys.

    Args:
        config: The configuration.
        worker: Logged in.

    Raises:
        HsmKmsError: The token could not be asked.
    """
    ask = ask_of(config, worker)
    settings = key_settings(config)
    live = await list_keys(ask, settings.label, settings.ids)
    retired = await _retired(ask, settings)
    macs = await _macs(ask, settings)
    error: HsmKmsError | None = None
    try:
        ring = await read_ring(config, worker)
    except (MechanismError, KeyAmbiguousError) as caught:
        error = caught
        ring = Keyring(keys=(), current=None, fault=caught, settings=settings)
    found = [_known(seen, ring, live) for seen in live]
    found += [each async for each in _identified(ask, retired, macs, settings)]
    taken = {each.beside for each in found}
    return Survey(
        ring=ring,
        error=error,
        memory=remembered(config),
        found=tuple(sorted(found, key=_order)),
        loose=tuple(ref for ref in macs if ref not in taken),
    )


def _order(found: Found) -> tuple[bool, int, str]:
    activation = max((key.activation for key in found.keys), default=0)
    return found.relabelled, activation, found.ref.cka_id.hex()


async def _retired(ask: Ask, settings: KeySettings) -> tuple[KeySeen, ...]:
    if settings.label is None:
        return ()  # such keys are found by CKA_ID alone, whatever their label
    return await list_keys(ask, settings.label + RETIRED, settings.ids, prefix=True)


async def _macs(ask: Ask, settings: KeySettings) -> tuple[KeyRef, ...]:
    """The AES keys that the HMAC keys belong to, by their names."""
    label = settings.label
    ids = tuple(KeyRef("", each).partner.cka_id for each in settings.ids)
    if label is None:
        seen = await list_keys(ask, None, ids, partners=True)
    else:
        partner = KeyRef(label, b"").partner.label
        seen = await list_keys(ask, partner, ids, partners=True)
        seen += await list_keys(ask, label + RETIRED, ids, prefix=True, partners=True)
    refs = [(_owner(each.ref), each.ref) for each in seen]
    # What does not end as a partner's names do belongs to no key of ours.
    return tuple(owner for owner, own in refs if owner.partner == own)


def _owner(own: KeyRef) -> KeyRef:
    """The AES key that an HMAC key with these names would belong to."""
    nobody = KeyRef("", b"").partner
    return KeyRef(
        own.label.removesuffix(nobody.label), own.cka_id.removesuffix(nobody.cka_id)
    )


def _known(seen: KeySeen, ring: Keyring, live: Sequence[KeySeen]) -> Found:
    keys = tuple(key for key in ring.keys if key.ref == seen.ref)
    problem = ""
    if sum(each.ref == seen.ref for each in live) > 1:
        keys, problem = (), "another key has the same CKA_LABEL and CKA_ID"
    elif not keys:
        against = violations(seen, Cipher.GCM, ring.settings)
        problem = ", ".join(against) or "it was not identified"
    return Found(
        seen=seen,
        beside=seen.ref if seen.partner else None,
        names={key.cipher: key.fingerprint for key in keys},
        keys=keys,
        problem=problem,
    )


async def _identified(
    ask: Ask,
    retired: Sequence[KeySeen],
    macs: Sequence[KeyRef],
    settings: KeySettings,
) -> AsyncIterator[Found]:
    for seen in retired:
        beside: KeyRef | None = seen.ref
        if seen.partner is None:  # it may still have the label of before
            before = KeyRef(settings.label or "", seen.ref.cka_id)
            beside = before if before in macs else None
        names: dict[Cipher, str] = {}
        problem = ""
        try:
            names = await _names(ask, seen.ref, beside, settings)
        except KeyNotFoundError:
            continue  # it vanished meanwhile
        except (MechanismError, KeyAmbiguousError) as error:
            problem = str(error)
        yield Found(
            seen=seen, beside=beside, names=names, relabelled=True, problem=problem
        )


async def _names(
    ask: Ask, ref: KeyRef, beside: KeyRef | None, settings: KeySettings
) -> dict[Cipher, str]:
    ciphers = list(Cipher) if beside else [Cipher.GCM]
    if settings.fingerprint == "cka_id":
        return dict.fromkeys(ciphers, fingerprint_of_cka_id(ref.cka_id))
    return {
        cipher: await fingerprint(
            ask, ref, paired=cipher is Cipher.CBC_HMAC, beside=beside
        )
        for cipher in ciphers
    }
